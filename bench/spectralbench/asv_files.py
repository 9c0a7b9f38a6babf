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
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spectralbench import fields as stored
from spectralbench.fields import NAME, Field
from spectralbench.names import LETTERS
from spectralbench.record import Damage, Scalar

API_VERSION = 2
MOST_POINTS = 1_000_000
LONGEST_LITERAL = 200
RESULT_FILE: Mapping[str, Field] = {
    "commit_hash": NAME,
    "date": Field("milliseconds since 1970", stored.is_number),
    "params": Field("an object", lambda value: type(value) is dict),
    "results": Field("an object", lambda value: type(value) is dict),
    "result_columns": Field("a list of names", lambda value: _is_texts(value, depth=1)),
    "python": Field("text", stored.is_text, required=False),
    "requirements": Field("an object", lambda value: type(value) is dict, required=False),
}
"""The fields of a result file that are read, besides `version`."""
UNITS = {"second": "seconds", "byte": "bytes", "joule": "joules", "1": "unit"}
"""Our units by asv's names."""
_UNITS = {"": "1", **{theirs: ours for ours, theirs in UNITS.items()}}
_KINDS = ("track_", "time_", "timeraw_", "peakmem_", "mem_")
_NO_MATRIX = ("machine", "python", "os", "arch", "cpu", "num_cpu", "ram")


@dataclass(frozen=True, slots=True)
class AsvResult:
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


def read_tree(root: Path) -> tuple[tuple[AsvResult, ...], tuple[Damage, ...]]:
    """Every result below `root` (results/asv), and the files or benchmarks that could not be used."""
    results: list[AsvResult] = []
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
                why = f"expected asv results of api version {API_VERSION}, got {reprlib.repr(fields.get('version'))}"
                raise ValueError(f"{why}; run `asv update`")
            results.extend(_file(path, fields, benchmarks, damage))
        except (OSError, ValueError, KeyError) as error:
            why = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            damage.append(Damage(path, 1, why))
    return tuple(results), tuple(damage)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        fields = stored.parsed(stored.regular_file(path).decode("utf-8-sig"), not_a_number=True)
    except json.JSONDecodeError as error:
        raise ValueError(f"not whole JSON ({error.msg} at line {error.lineno})") from None
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    return fields


def _file(
    path: Path, fields: Mapping[str, Any], benchmarks: Mapping[str, Any], damage: list[Damage]
) -> list[AsvResult]:
    stored.checked(fields, RESULT_FILE)
    columns: Sequence[str] = fields["result_columns"]
    machine = fields["params"].get("machine", path.parent.name)
    if not stored.is_name(machine):
        raise ValueError(f"machine must be {stored.NAME.expected}, got {reprlib.repr(machine)}")
    shared: dict[str, Any] = {
        "file": path.stem,
        "machine": machine,
        "commit": fields["commit_hash"],
        "date": _moment(fields["date"]),
        "environment": _environment(fields),
    }
    found: list[AsvResult] = []
    for name, row in fields["results"].items():
        try:
            if type(row) is not list:
                raise ValueError("expected a list of columns")
            column = dict(zip(columns, row, strict=False))
            declared = benchmarks.get(name)
            if declared is None:
                damage.append(
                    Damage(path, 1, f"{name} is not in benchmarks.json: its unit and parameters have no name")
                )
            elif type(declared) is not dict:
                raise ValueError("benchmarks.json does not say what it is")
            found.extend(_benchmark(name, column, declared or {}, shared))
        except (ValueError, KeyError) as error:
            damage.append(Damage(path, 1, f"{name} not used: {error}"))
    return found


def _benchmark(
    name: str, column: Mapping[str, Any], declared: Mapping[str, Any], shared: Mapping[str, Any]
) -> list[AsvResult]:
    """The parameter points of one benchmark, in asv's order."""
    benchmark, _, method = name.rpartition(".")
    metric = next((method.removeprefix(kind) for kind in _KINDS if method.startswith(kind)), method)
    stated = str(declared.get("unit", "unit"))
    axes: list[list[str]] = column.get("params") or []
    if not _is_texts(axes, depth=2):
        raise ValueError("the parameters must be lists of texts")
    names = declared.get("param_names") or [f"param{index}" for index in range(1, len(axes) + 1)]
    if not _is_texts(names, depth=1) or len(names) != len(axes):
        raise ValueError(f"{len(axes)} parameters need as many names")
    points = math.prod(map(len, axes))
    values = column["result"]
    if values is None:
        if points > MOST_POINTS:
            raise ValueError(f"{points} parameter points are more than the {MOST_POINTS} that are read")
        values = [None] * points
    if type(values) is not list or len(values) != points:
        raise ValueError(f"{reprlib.repr(values)} for {points} parameter points")
    found = []
    for index, (value, texts) in enumerate(zip(values, itertools.product(*axes), strict=True)):
        skipped = type(value) is float and math.isnan(value)
        if not (value is None or skipped or stored.is_number(value)):
            raise ValueError(f"expected a finite number, got {reprlib.repr(value)}")
        params = {key: _scalar(_bare(key, text)) for key, text in zip(names, texts, strict=True)}
        quartiles = (_at(column, "stats_q_25", index), _at(column, "stats_q_75", index))
        samples = _at(column, "samples", index) or []
        count = _at(column, "stats_repeat", index) or 1
        if not (stored.is_count(count) and all(one is None or stored.is_number(one) for one in quartiles)):
            raise ValueError(f"the statistics must be numbers, got {reprlib.repr((count, *quartiles))}")
        if samples and not stored.is_samples(samples):
            raise ValueError(f"samples must be {stored.SAMPLES.expected}, got {reprlib.repr(samples)}")
        found.append(
            AsvResult(
                **shared,
                benchmark=benchmark or method,
                metric=metric,
                version=str(column.get("version")),
                unit=_UNITS.get(stated, stated),
                implementation=str(params.pop("implementation", "")),
                params=params,
                value=None if skipped else value,
                skipped=skipped,
                quartiles=quartiles if None not in quartiles else None,
                samples=tuple(samples),
                count=count,
            )
        )
    return found


def _at(columns: Mapping[str, Any], name: str, index: int) -> Any:
    """The entry of one parameter point; asv leaves out what it did not keep."""
    values = columns.get(name)
    if values is None:
        return None
    if type(values) is not list or len(values) <= index:
        raise ValueError(f"{name} has no entry {index}")
    return values[index]


def _is_texts(value: Any, depth: int) -> bool:
    if depth == 0:
        return type(value) is str
    return type(value) is list and all(_is_texts(item, depth - 1) for item in value)


def _moment(milliseconds: float) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="microseconds")
    except (OverflowError, OSError):
        raise ValueError(f"date must be milliseconds since 1970, got {milliseconds}") from None


def _bare(name: str, text: str) -> str:
    """`3` of `K=3`, as our front end tells asv the numbers among its parameters."""
    label, equals, value = text.partition("=")
    return value if equals and label in (name, LETTERS.get(name)) else text


def _scalar(text: str) -> Scalar:
    """The value behind a `repr`; whatever is not a literal stays as it is written."""
    if len(text) > LONGEST_LITERAL:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if stored.is_scalar(value) else text


def _environment(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The versions that asv knows. An interpreter's path is a place, no version: moving it splits nothing."""
    python = str(fields.get("python") or "")
    known = {} if "/" in python or "\\" in python or not python else {"python": python}
    matrix = {name: str(value) for name, value in fields["params"].items() if name not in _NO_MATRIX}
    requirements = {name: str(value) for name, value in (fields.get("requirements") or {}).items()}
    return tuple(sorted({**known, **matrix, **requirements}.items()))
