"""How each metric is judged, by its own file, and rules for single series from the command line or `pyproject.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from spectralbench.history import Key
from spectralbench.metrics import Rule, load_metrics

RULES: Mapping[str, Rule] = MappingProxyType({name: metric.rule for name, metric in load_metrics().items()})
DEFAULT_RULE = Rule(0.05)
"""Of a metric that records hold and no file declares any more."""
ERRORS = frozenset(name for name, rule in RULES.items() if rule.error)
LESS_EXACT = 2.0
"""An error that grows by more than this has bought the time."""

_FORM = re.compile(r"(?P<metric>[^:=]+)(:(?P<series>.+))?=(?P<percent>\d+(\.\d+)?)%(?P<pinned>!?)")


@dataclass(frozen=True, slots=True)
class Override:
    """Another practical limit for the series whose operation or whole name matches a pattern of `fnmatch`."""

    metric: str
    series: str
    practical: float
    pinned: bool = False


def parse(text: str) -> Override:
    """`device_time:conv2d*=3%` or `device_time=3%`; `3%!` also fails if it is better by more than that.

    Raises: ValueError that shows the form and the known metrics.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"expected METRIC[:SERIES]=PERCENT%, such as device_time:conv2d*=3% or =3%! (better fails), got {text!r}"
        )
    if found["metric"] not in RULES:
        raise ValueError(f"unknown metric {found['metric']!r} in {text!r}; known: {', '.join(RULES)}")
    return Override(found["metric"], found["series"] or "*", float(found["percent"]) / 100, bool(found["pinned"]))


def configured(file: Path) -> list[Override]:
    """The rules of `[tool.spectralbench.alert] rules = ["device_time:conv2d*=3%"]`; none if there is no such file.

    Raises: ValueError that names the file, if it is not TOML, has another key there or a rule that `parse` refuses.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    try:
        table = tomllib.loads(text).get("tool", {}).get("spectralbench", {}).get("alert", {})
        if set(table) - {"rules"}:
            raise ValueError(f"unknown {', '.join(sorted(set(table) - {'rules'}))}; known: rules")
        texts = table.get("rules", [])
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"expected a list of texts as rules, got {texts!r}")
        return [parse(one) for one in texts]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"[tool.spectralbench.alert] in {file}: {error}") from error


def rule_of(key: Key, rules: Mapping[str, Rule], overrides: Sequence[Override] = ()) -> Rule:
    """The rule of a series; of several overrides that match, the last one counts."""
    rule = rules.get(key.metric, DEFAULT_RULE)
    for override in overrides:
        names = (key.subject.operation, str(key.subject))
        if override.metric == key.metric and any(fnmatchcase(name, override.series) for name in names):
            rule = replace(rule, practical=override.practical, pinned=override.pinned)
    return rule
