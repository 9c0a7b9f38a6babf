"""asv's result files, read as plain JSON (api version 2, as asv 0.6 writes them; standard library only).

    results/asv/benchmarks.json                      parameter names and units
    results/asv/<machine>/<hash8>-<environment>.json    one commit in one environment

In the result column null is a failure and NaN is "not applicable". Values are listed in the order of the product of the
parameters, trailing empty columns are left out, and parameter values are stored as their `repr`.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spectralbench.record import Damage, Scalar

API_VERSION = 2
_UNITS = {"seconds": "second", "bytes": "byte", "joules": "joule", "unit": "1", "": "1"}
_KINDS = ("track_", "time_", "timeraw_", "peakmem_", "mem_")
_NO_MATRIX = ("machine", "python", "os", "arch", "cpu", "num_cpu", "ram")


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark at one parameter point; `value` is None if it failed, `skipped` if it was not applicable."""

    file: str
    machine: str
    commit: str
    date: str
    environment: tuple[tuple[str, str], ...]
    benchmark: str
    metric: str
    version: str
    unit: str
    implementation: str
    params: Mapping[str, Scalar]
    value: float | None
    skipped: bool = False
    quartiles: tuple[float, float] | None = None
    samples: tuple[float, ...] = ()
    count: int = 1


def read_tree(root: Path) -> tuple[tuple[Result, ...], tuple[Damage, ...]]:
    """Every result below `root` (results/asv), and the files or benchmarks that could not be used."""
    results: list[Result] = []
    damage: list[Damage] = []
    paths = [path for path in sorted(root.glob("*/*.json")) if path.name != "machine.json"]
    if not paths:
        return (), ()
    benchmarks: Mapping[str, Any] = {}
    try:
        benchmarks = _object(root / "benchmarks.json")
    except (OSError, ValueError) as error:
        why = f"parameter names and units of asv's results are unknown: {error}"
        damage.append(Damage(root / "benchmarks.json", 1, why))
    for path in paths:
        try:
            fields = _object(path)
            if fields.get("version") != API_VERSION:
                why = f"expected asv results of api version {API_VERSION}, got {fields.get('version')!r}"
                raise ValueError(f"{why}; run `asv update`")
            results.extend(_file(path, fields, benchmarks, damage))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            damage.append(Damage(path, 1, why))
    return tuple(results), tuple(damage)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not whole JSON ({error.msg} at line {error.lineno})") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    return fields


def _file(path: Path, fields: Mapping[str, Any], benchmarks: Mapping[str, Any], damage: list[Damage]) -> list[Result]:
    columns: Sequence[str] = fields["result_columns"]
    date = datetime.fromtimestamp(fields["date"] / 1000, UTC).isoformat(timespec="microseconds")
    shared: dict[str, Any] = {
        "file": path.stem,
        "machine": str(fields["params"].get("machine", path.parent.name)),
        "commit": fields["commit_hash"],
        "date": date,
        "environment": _environment(fields),
    }
    found: list[Result] = []
    for name, row in fields["results"].items():
        try:
            stored = dict(zip(columns, row, strict=False))
            if name not in benchmarks:
                damage.append(
                    Damage(path, 1, f"{name} is not in benchmarks.json: its unit and parameters have no name")
                )
            found.extend(_benchmark(name, stored, benchmarks.get(name, {}), shared))
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            damage.append(Damage(path, 1, f"{name} not used: {error}"))
    return found


def _benchmark(
    name: str, stored: Mapping[str, Any], declared: Mapping[str, Any], shared: Mapping[str, Any]
) -> Iterator[Result]:
    """The parameter points of one benchmark, in asv's order."""
    benchmark, _, method = name.rpartition(".")
    metric = next((method.removeprefix(kind) for kind in _KINDS if method.startswith(kind)), method)
    stated = str(declared.get("unit", "unit"))
    axes: list[list[str]] = stored.get("params") or []
    names = declared.get("param_names") or [f"param{index}" for index in range(1, len(axes) + 1)]
    combinations = list(itertools.product(*axes))
    values = stored["result"]
    if values is None:
        values = [None] * len(combinations)
    if len(values) != len(combinations):
        raise ValueError(f"{len(values)} values for {len(combinations)} parameter points")
    for index, (value, texts) in enumerate(zip(values, combinations, strict=True)):
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"expected a number, got {type(value).__name__}")
        if value is not None and math.isinf(value):
            raise ValueError("infinite value")
        params = {str(key): _scalar(text) for key, text in zip(names, texts, strict=True)}
        skipped = value is not None and math.isnan(value)
        quartiles = (_at(stored, "stats_q_25", index), _at(stored, "stats_q_75", index))
        samples = _at(stored, "samples", index) or ()
        yield Result(
            **shared,
            benchmark=benchmark or method,
            metric=metric,
            version=str(stored.get("version")),
            unit=_UNITS.get(stated, stated),
            implementation=str(params.pop("implementation", "")),
            params=params,
            value=None if skipped else value,
            skipped=skipped,
            quartiles=quartiles if None not in quartiles else None,
            samples=tuple(samples),
            count=_at(stored, "stats_repeat", index) or 1,
        )


def _at(stored: Mapping[str, Any], column: str, index: int) -> Any:
    values = stored.get(column)
    return None if values is None else values[index]


def _scalar(text: str) -> Scalar:
    """The value behind a `repr`; whatever is not a literal stays as it is written."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str | bool) else text


def _environment(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The versions that asv knows. An interpreter's path is a place, no version: moving it splits nothing."""
    python = str(fields.get("python", ""))
    known = {} if "/" in python or "\\" in python or not python else {"python": python}
    matrix = {name: str(value) for name, value in fields["params"].items() if name not in _NO_MATRIX}
    requirements = {name: str(value) for name, value in (fields.get("requirements") or {}).items()}
    return tuple(sorted({**known, **matrix, **requirements}.items()))
