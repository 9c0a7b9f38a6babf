"""Records as tables for people: narrow ones of a case, or a wide one of an operation; a row per implementation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from spectralbench import metrics, names, rates
from spectralbench.outcome import Measurement
from spectralbench.quantity import amount, in_percent, ratio_words, scale
from spectralbench.record import Record

if TYPE_CHECKING:  # it imports torch
    from spectralbench.ceilings import Ceilings

TIME = "device_time"
RATES = ("GB/s", "GFLOP/s")


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One implementation at one case: its records, one per process."""

    point: tuple[tuple[str, str], ...]
    implementation: str
    role: str
    records: tuple[Record, ...]

    @property
    def failed(self) -> Record | None:
        return next((record for record in self.records if record.status == "failed"), None)

    def rates(self) -> tuple[float, float] | None:
        """Bytes and flops of the floor per second; None without a time or a floor."""
        time, cost = self.metric([TIME]), self.records[0].cost
        if time is None or time.median <= 0 or not cost:
            return None
        return rates.achieved(cost, self.records[0].pass_, time.median)

    def metric(self, names: Sequence[str]) -> Measurement | None:
        """The samples of one process, or the medians of several, of the first of `names` that was taken."""
        for name in names:
            found = [taken for record in self.records if (taken := record.metric(name)) is not None]
            if len(found) > 1:
                medians = tuple(taken.median for taken in found)
                return Measurement(name, found[0].version, found[0].unit, medians)
            if found:
                return found[0]
        return None


def rows(records: Iterable[Record]) -> dict[str, list[OutcomeRow]]:
    """Measured and failed records by operation, in the order they come, processes gathered."""
    gathered: dict[str, dict[tuple[tuple[tuple[str, str], ...], str], list[Record]]] = {}
    for record in records:
        if record.status != "skipped":
            point = (*((name, str(value)) for name, value in record.case.items()), ("dtype", record.dtype))
            key = ((*point, ("pass", record.pass_)), record.implementation)
            gathered.setdefault(record.operation, {}).setdefault(key, []).append(record)
    return {
        operation: [OutcomeRow(point, name, found[0].role, tuple(found)) for (point, name), found in groups.items()]
        for operation, groups in gathered.items()
    }


NARROW: tuple[tuple[str, int], ...] = (("implementation", 33), ("time", 9), ("ratio", 12), ("saved", 8), ("error", 6))
"""Columns of a case's table and their widths: with the gaps 80 columns."""


def case_tables(operation: str, found: Sequence[OutcomeRow]) -> Iterator[Table]:
    """A table per case in 80 columns: time, ratio to the best baseline, bytes saved, error of the answer."""
    for index, point in enumerate(dict.fromkeys(row.point for row in found)):
        group = [row for row in found if row.point == point]
        facts = {**group[0].records[0].case, "dtype": group[0].records[0].dtype, "pass": group[0].records[0].pass_}
        title = f"{names.operation(operation)} {names.short(facts)}".strip()
        table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0),
                      show_header=index == 0, header_style="dim")  # fmt: skip
        for name, width in NARROW:
            table.add_column(name, width=width, justify="left" if name == "implementation" else "right",
                             no_wrap=name == "time", overflow="fold")  # fmt: skip
        best = best_baseline(group)
        for row in group:
            error = row.metric(["approximation_error"])
            cells = (
                escape(row.implementation) + (" †" if row.role == "rival" else ""),
                _short_time(row),
                _short_ratio(row, best),
                _cell(row.metric(["saved_bytes"])),
                "-" if error is None else in_percent(statistics.median(error.samples)),
            )
            table.add_row(*cells, style="bold" if row.role == "kernel" else None)
        yield table


def operation_table(operation: str, found: Sequence[OutcomeRow], ceilings: Ceilings | None = None) -> Table:
    """Every row of an operation; parameters that never vary stand below, failures where the time would be.

    ceilings: of this machine in float32, for the percent of the floor; None leaves that column out.
    """
    varying, constant = _split_parameters(found)
    columns = [(title, names) for title, names in metrics.columns() if any(row.metric(names) for row in found)]
    notes = [f"everywhere: {constant}"] if constant else []
    if ceilings is not None:
        notes.append(
            f"GB/s, GFLOP/s: of the operation's floor. Percent of it at {ceilings.bytes_per_second / 1e9:.3g} GB/s and "
            f"{ceilings.flops_per_second / 1e9:.3g} GFLOP/s in float32, measured after the run"
        )
    caption = "\n".join(notes) or None
    rated = any(row.rates() for row in found)
    table = Table(title=operation, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    if varying:
        table.add_column("case", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    table.add_column("time (quartiles)", justify="right", no_wrap=True)
    table.add_column("to best baseline", no_wrap=True)
    for title in [*(title for title, _ in columns), *(RATES if rated else ()), *(["floor"] if ceilings else ())]:
        table.add_column(title, justify="right")
    for point in dict.fromkeys(row.point for row in found):
        group = [row for row in found if row.point == point]
        best = best_baseline(group)
        parameters = _spread([f"{name}={dict(point)[name]}" for name in varying if name in dict(point)], len(group))
        for index, row in enumerate(group):
            cells = [parameters[index]] if varying else []
            cells += [escape(row.implementation), _time_cell(row), _ratio_cell(row, best)]
            cells += [_cell(row.metric(names)) for _, names in columns]
            cells += [f"{rate / 1e9:.3g}" for rate in row.rates() or ()] or ["-"] * (len(RATES) if rated else 0)
            cells += [_floor(row, ceilings)] if ceilings else []
            table.add_row(*cells, end_section=index == len(group) - 1, style="bold" if row.role == "kernel" else None)
    return table


def best_baseline(group: Sequence[OutcomeRow]) -> OutcomeRow | None:
    """The fastest measured baseline of one case."""
    timed = [row for row in group if row.role == "baseline" and row.metric([TIME])]
    return min(timed, key=_median_time, default=None)


def _median_time(row: OutcomeRow) -> float:
    time = row.metric([TIME])
    assert time is not None, "only timed rows are compared"
    return time.median


def _split_parameters(found: Sequence[OutcomeRow]) -> tuple[list[str], str]:
    names = list(dict.fromkeys(name for row in found for name, _ in row.point))
    values = {name: list(dict.fromkeys(dict(row.point).get(name, "") for row in found)) for name in names}
    varying = [name for name in names if len(values[name]) > 1]
    return varying, ", ".join(f"{name}={values[name][0]}" for name in names if len(values[name]) == 1)


def _spread(words: Sequence[str], lines: int) -> list[str]:
    """Words over so many lines, evenly, so that a case takes no more width or height than its rows need."""
    per_line = -(-len(words) // lines)
    return [escape(" ".join(words[line * per_line : (line + 1) * per_line])) for line in range(lines)]


def _time_cell(row: OutcomeRow) -> str:
    if (failed := row.failed) is not None:
        return f"[red]failed: {failed.failure}[/red]"
    time = row.metric([TIME])
    if time is None:
        return "-"
    lower, upper = time.quartiles
    divisor, symbol = scale((time.median,), time.unit)
    spread = f"({lower / divisor:.3g} - {upper / divisor:.3g})"
    return f"{time.median / divisor:.3g} {symbol} {spread}"


def _short_time(row: OutcomeRow) -> str:
    return "[red]failed[/red]" if row.failed is not None else _cell(row.metric([TIME]))


def _short_ratio(row: OutcomeRow, best: OutcomeRow | None) -> str:
    if row.failed is not None:
        return str(row.failed.failure)
    return "best base" if row is best else _ratio_cell(row, best)


def _ratio_cell(row: OutcomeRow, best: OutcomeRow | None) -> str:
    if best is None or row.metric([TIME]) is None:
        return "-"
    if row is best:
        return "best baseline"
    time = row.metric([TIME])
    reference = _median_time(best)
    assert time is not None, "checked above"
    return ratio_words(time.median / reference if reference else None, time.unit)


def _floor(row: OutcomeRow, ceilings: Ceilings) -> str:
    """Percent of the speed that the ceilings allow; they are float32's, so that coarser classes have none."""
    record, time = row.records[0], row.metric([TIME])
    if time is None or time.median <= 0 or not record.cost or record.dtype not in rates.RATED:
        return "-"
    reached = rates.share(record.cost, record.pass_, time.median, ceilings.bytes_per_second, ceilings.flops_per_second)
    return in_percent(reached)


def _cell(found: Measurement | None) -> str:
    return "-" if found is None else amount(statistics.median(found.samples), found.unit)
