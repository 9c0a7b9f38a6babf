"""How each metric is judged, and rules for single series from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from spectralbench.history import Key


@dataclass(frozen=True, slots=True)
class Rule:
    """How one metric is judged.

    practical: smallest relative change worth a person's time. exact: there is no noise. fact: not a cost, so that a
    change in either direction is a regression. host: a slow host moves it, so that baselines are its controls.
    """

    practical: float
    exact: bool = False
    fact: bool = False
    host: bool = False


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "device_time": Rule(0.03, host=True),
        "energy": Rule(0.10, host=True),
        "host_peak": Rule(0.10),
        "nvml_memory": Rule(0.05),
        "peak_reserved": Rule(0.05),
        "peak_allocated": Rule(0.001, exact=True),
        "saved_bytes": Rule(0.001, exact=True),
        "stored_bytes": Rule(0.001, exact=True),
        "kept_fraction": Rule(0.001, exact=True, fact=True),
        "achieved_compression": Rule(0.001, exact=True, fact=True),
        "approximation_error": Rule(0.01, exact=True),
        "approximation_error_sym": Rule(0.01, exact=True),
        "rounding_error": Rule(0.20),
    }
)
DEFAULT_RULE = Rule(0.05)

_FORM = re.compile(r"(?P<metric>[^:=]+)(:(?P<series>.+))?=(?P<percent>\d+(\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class Override:
    """Another practical limit for the series whose operation or whole name matches a pattern of `fnmatch`."""

    metric: str
    series: str
    practical: float


def parse(text: str) -> Override:
    """`device_time:conv2d*=3%` or `device_time=3%`.

    Raises: ValueError that shows the form and the known metrics.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected METRIC[:SERIES]=PERCENT%, such as device_time:conv2d*=3%, got {text!r}")
    if found["metric"] not in RULES:
        raise ValueError(f"unknown metric {found['metric']!r} in {text!r}; known: {', '.join(RULES)}")
    return Override(found["metric"], found["series"] or "*", float(found["percent"]) / 100)


def rule_of(key: Key, rules: Mapping[str, Rule], overrides: Sequence[Override] = ()) -> Rule:
    """The rule of a series; of several overrides that match, the last one counts."""
    rule = rules.get(key.metric, DEFAULT_RULE)
    for override in overrides:
        names = (key.subject.operation, str(key.subject))
        if override.metric == key.metric and any(fnmatchcase(name, override.series) for name in names):
            rule = replace(rule, practical=override.practical)
    return rule
