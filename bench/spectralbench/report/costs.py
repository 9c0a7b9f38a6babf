"""What it costs: time, error and memory of one kernel size side by side, by compression.

Memory has two columns, because it does not survive a model: behind a ReLU the library convolution saves the map that
the ReLU has saved already, while a band-limited one adds its spectrum to that map. The second column is the saved
bytes plus that map; it is computed from the first, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectralbench import names, rivals
from spectralbench.contest import CaseRows, Contender, Versus, times
from spectralbench.quantity import amount, in_percent
from spectralbench.report.page import Cell, Table
from spectralbench.settings import LETTERS, Setting, ours

WORDS = (
    "error: of the answer against the uncompressed one. saved: bytes kept for backward over those of the torch "
    "convolution, alone, and behind a ReLU, whose map is saved anyway."
)
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16}


def map_bytes(case: CaseRows) -> int | None:
    """Bytes of the input map of a convolution; None where the case does not say its shape."""
    sizes = [case.params.get(name) for name in ("batch", "in_channels")]
    sizes += [case.params[name] for name in ("height", "width", "length") if name in case.params]
    if len(sizes) < 3 or not all(type(size) is int for size in sizes) or case.subject.dtype not in BYTES:
        return None
    return math.prod(size for size in sizes if isinstance(size, int)) * BYTES[case.subject.dtype]


def saved(case: CaseRows, row: Contender, conv: Contender | None) -> tuple[float | None, float | None]:
    """Bytes saved for backward over those of the library convolution: alone, and behind a ReLU; None if unknown."""
    own, other = row.value("saved_bytes"), None if conv is None else conv.value("saved_bytes")
    if own is None or not other:
        return None, None
    size = map_bytes(case)
    return own / other, None if size is None else (own + size) / other


def share(value: float | None) -> str:
    """A ratio of bytes in a table."""
    return "" if value is None else times(value)


def cost_table(setting: Setting) -> Table | None:
    """A row per compression at the kernel size that was measured at the most of them, the smallest such K >= 7."""
    down, across = setting.view.down, setting.view.across
    if down is None:
        return None
    count = {value: sum(case.params[down] == value for case in setting.cases) for value in setting.values(down)}
    if not count:
        return None
    most = [value for value in count if count[value] == max(count.values())]
    kernel = next((value for value in most if value >= 7), most[-1])
    rows = [
        made
        for case in sorted(setting.cases, key=lambda one: float(one.params[across]))
        if case.params[down] == kernel and (made := _row(case, setting)) is not None
    ]
    columns = (
        f"K = {names.number(kernel)}", "dropped", "error", "ours", "time",
        *(f"x over\n{rivals.WORDS[family]}" for family in setting.view.families),
        "saved\nalone", "saved\nbehind ReLU", "host peak",
    )  # fmt: skip
    return Table(columns, tuple(rows), frozenset({1, 2, 4, 5, 6, 7, 8, 9})) if rows else None


def _row(case: CaseRows, setting: Setting) -> tuple[Cell | str, ...] | None:
    row = ours(case, setting.view)
    if row is None or row.time is None:
        return None
    against = [case.against(row, family) for family in setting.view.families]
    conv = next((one.other for one in against if one is not None and rivals.family(one.other.name) == "conv"), None)
    alone, behind = saved(case, row, conv)
    peak = row.value("peak_allocated") or row.value("host_peak")
    letter = LETTERS[setting.view.across]
    return (
        f"{letter} = {names.number(case.params[setting.view.across])}",
        percent(row.value("achieved_compression") if row.value("achieved_compression") is not None else 0.0),
        percent(row.value("approximation_error")),
        row.name,
        Cell(amount(row.time.value, "second"), key=row.time.value),
        *(_against(one) for one in against),
        share(alone),
        share(behind),
        "" if peak is None else amount(peak, "byte"),
    )


def _against(one: Versus | None) -> Cell:
    return Cell("") if one is None else Cell(one.text, one.kind, one.faster)


def percent(value: float | None) -> str:
    """`27 %`, `0.4 %`; rounding alone reads as 0."""
    if value is None:
        return ""
    return "0 %" if value < 1e-5 else in_percent(value)


def prices(found: Sequence[Setting]) -> list[tuple[Setting, Table]]:
    """The cost table of every setting that has one."""
    return [(setting, table) for setting in found if (table := cost_table(setting)) is not None]
