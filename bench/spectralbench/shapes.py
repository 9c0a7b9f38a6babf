"""`--cases shapes.csv`: cases of one's own in the place of those that a profile declares.

The first line names parameters of one operation, and `dtype` and `pass` where they differ from the usual; every other
line is a case:

    batch,in_channels,out_channels,height,width,kernel_size,compression,pass
    16,64,64,28,28,7,0.5,both

A parameter that goes without saying in a case's name (`names.USUAL`: the tight grid, one group, photographs) may be
left out. The cases are an operation's like any other: same identity, same records, same resuming.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from spectralbench import names, overrides
from spectralbench.fields import is_count
from spectralbench.text import meant
from spectralkernels.declare import PROFILES, Case, Operation, Pass, Scalar
from spectralkernels.errors import RangeError, SpectralKernelsError
from spectralkernels.inputs import KINDS

PASSES: tuple[Pass, ...] = get_args(Pass)
Word = TypeVar("Word", bound=str)
BESIDE = ("dtype", "pass")
"""Columns that are no parameters."""


def read(path: Path, operation: Operation) -> tuple[tuple[Case, Pass], ...]:
    """The cases of a file with their passes, in its order, each once.

    Raises: RangeError with the line, and the column where it is one's fault: a file that cannot be read or has no
    case; a column that is unknown (with a near match), twice there or missing; a value that the parameter cannot take;
    a case that the operation refuses.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise RangeError(f"{path} cannot be read as CSV in UTF-8: {error}") from None
    filled = [(number, cells) for number, cells in lines if any(cells)]
    if len(filled) < 2:
        raise RangeError(f"{path} has no case: it needs a line of column names, and a line for every case")
    (first, columns), *rows = filled
    declared = _declared(operation)
    _check_columns(f"{path} line {first}", columns, declared, operation)
    found: dict[tuple[Case, Pass], None] = {}
    for number, cells in rows:
        where = f"{path} line {number}"
        if len(cells) != len(columns):
            raise RangeError(f"{where} has {len(cells)} cells, but the file has {len(columns)} columns")
        found[_case(where, dict(zip(columns, cells, strict=True)), declared, operation)] = None
    return tuple(found)


def _declared(operation: Operation) -> dict[str, list[Scalar]]:
    """Every value that any profile declares for each parameter, in declared order."""
    found: dict[str, list[Scalar]] = {}
    for profile in PROFILES:
        for name, values in overrides.parameters(operation, profile).items():
            found.setdefault(name, []).extend(values)
    if "input" in found and set(found["input"]) <= set(KINDS):
        found["input"].extend(KINDS)
    return found


def _check_columns(
    where: str, columns: Sequence[str], declared: Mapping[str, Sequence[Scalar]], operation: Operation
) -> None:
    for index, name in enumerate(columns):
        if name in columns[:index]:
            raise RangeError(f"{where} has the column {name!r} twice")
        if name not in declared and name not in BESIDE:
            raise RangeError(f"{where}: {operation.name} has no parameter {name!r}{meant(name, (*declared, *BESIDE))}")
    missing = [name for name in declared if name not in columns and name not in names.USUAL]
    if missing:
        raise RangeError(f"{where} lacks the column {missing[0]!r}; {operation.name} has {', '.join(declared)}")


def _case(
    where: str, cells: Mapping[str, str], declared: Mapping[str, Sequence[Scalar]], operation: Operation
) -> tuple[Case, Pass]:
    for column, text in cells.items():
        if not text:
            raise RangeError(f"{where}, column {column!r}, is empty; a column that is not there takes what is usual")
    params = tuple((name, _value(where, name, cells.get(name), values)) for name, values in declared.items())
    known = tuple(operation.tolerance.relative)
    dtype = _one_of(where, "dtype", cells.get("dtype", known[0]), known)
    pass_ = _one_of(where, "pass", cells.get("pass", PASSES[0]), PASSES)
    case = Case(operation.name, params, dtype)
    if why := refusal(operation, case):
        raise RangeError(f"{where}: {why}")
    return case, pass_


def refusal(operation: Operation, case: Case) -> str | None:
    """Why a case of somebody's own cannot be one: the operation refuses its shape, or a record cannot hold its size."""
    try:
        cost = operation.cost(case)
        sizes = (cost.bytes, *operation.fft_size(case))
    except (SpectralKernelsError, ArithmeticError, ValueError) as error:
        return str(error)
    if min(sizes) < 1:
        return "a case of this shape reads and writes nothing"
    if not all(map(is_count, (cost.bytes, cost.flops, *sizes))):
        return f"a case of this shape counts {cost.flops} FLOPs and {cost.bytes} bytes, beyond 64 bits"
    return None


def _value(where: str, name: str, text: str | None, declared: Sequence[Scalar]) -> Scalar:
    if text is None:
        return names.USUAL[name]
    place = f"{where}, column {name!r}"
    try:
        found = overrides.value(name, text, declared)
    except RangeError as error:
        raise RangeError(f"{place}: {error}") from None
    if isinstance(found, str):
        return _one_of(where, name, found, [known for known in declared if isinstance(known, str)])
    least = min((1, *(known for known in declared if not isinstance(known, str))))
    if not math.isfinite(found) or (isinstance(found, int) and not isinstance(found, bool) and found < least):
        raise RangeError(f"{place}: {name} must be a finite number from {least} on, got {text!r}")
    return found


def _one_of(where: str, column: str, text: str, known: Iterable[Word]) -> Word:
    for word in known:
        if word == text:
            return word
    raise RangeError(f"{where}, column {column!r}: unknown {text!r}{meant(text, dict.fromkeys(known))}")
