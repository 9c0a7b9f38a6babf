"""Write REPORT.md from stored results: what was measured where, every ratio in words, and where we lose.

Every number is the median over processes of the newest measured commit; brackets are quartiles over the processes (over
the samples if there was one process). Ratios are taken process by process, because all implementations of a case are
timed interleaved in one process. A ratio is marked n.s. (not significant) if the 95 % interval of its logarithm over
the processes (Student's t) holds 1, and not judged if fewer than three processes measured both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectralbench.history import History, Point, Ratio, Series, Subject, current, load, only_machine, ratio
from spectralbench.quantity import amount, ratio_words, spread
from spectralbench.record import Scalar
from spectralbench.text import cell, code

INLINE_ROWS = 60
WORST = 30
FACTS = ("gpu", "gpu_memory_bytes", "driver", "cuda", "cudnn", "cpu", "cores", "threads", "ram_bytes", "os", "python",
         "torch", "triton", "onednn", "mkl", "flags", "load", "started_at")  # fmt: skip
COLUMNS = {
    "saved_bytes": "saved for backward",
    "peak_allocated": "peak allocated",
    "peak_reserved": "peak reserved",
    "nvml_memory": "NVML",
    "host_peak": "host peak",
    "stored_bytes": "stored",
    "energy": "energy",
    "rounding_error": "rounding error",
    "approximation_error": "approximation error",
    "approximation_error_sym": "the same, symmetric",
    "achieved_compression": "achieved compression",
    "kept_fraction": "kept fraction",
}


def write(results: Path | History, out: Path, machine: str | None = None) -> Path:
    """Write the report of one machine or all, and return its path.

    out: a path ending in .md, or a folder for REPORT.md. Operations with more than INLINE_ROWS rows get a file of their
    own below `report/` beside it. Figures that lie in `figures/<machine>/` beside it are shown.

    Raises: FileNotFoundError if there are no results; ValueError, naming the known machines, for another one.
    """
    history = only_machine(results if isinstance(results, History) else load(results), machine)
    path = out if out.suffix == ".md" else out / "REPORT.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Benchmark report", "", *_wrapped(__doc__.split("\n\n")[1]), ""]
    lines += _damage(history)
    now = current(history)
    for name in now.machines:
        lines += _machine(only_machine(now, name), name, path)
    if not now.machines:
        lines += ["No records yet: run `spectralbench run` first.", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class _Row:
    """One implementation of one case: its newest point per metric."""

    subject: Subject
    role: str
    params: Mapping[str, Scalar]
    metrics: Mapping[str, Series]

    @property
    def time(self) -> Point | None:
        found = self.metrics.get("device_time")
        return None if found is None else found.newest

    @property
    def facts(self) -> dict[str, Scalar]:
        """What may vary between the rows of a table besides the implementation."""
        subject = self.subject
        size = "x".join(map(str, subject.fft_size))
        return {**self.params, "dtype": subject.dtype, "pass": subject.pass_, "N": size, "cache": subject.cache,
                "launch": subject.launch, "seed": subject.seed}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Versus:
    """A row against a baseline's row; a rival's row counts as one."""

    row: _Row
    baseline: _Row
    ratio: Ratio

    @property
    def significant(self) -> bool:
        return self.ratio.significant

    @property
    def words(self) -> str:
        mark = " †" if self.baseline.role == "rival" else ""
        return (
            ratio_words(self.ratio.value, "second")
            + ("" if self.significant else " (n.s.)" if self.ratio.judged else " (not judged)")
            + mark
        )


def _machine(history: History, name: str, path: Path) -> Iterator[str]:
    yield from (f"## {name}", "")
    yield from _environment(history, name)
    figures = sorted((path.parent / "figures" / name).glob("*.png"), key=lambda found: found.stem.partition("-"))
    if figures:
        yield from ("### Figures", "")
        for figure in figures:
            link = f"[{figure.stem.replace('_', ' ')}]({figure.relative_to(path.parent).as_posix()})"
            # The first figure of a family is shown, those of its other settings are linked.
            yield f"- {link}" if "-" in figure.stem else f"\n!{link}\n"
        yield ""
    rows = _rows(history)
    comparisons = {operation: list(_comparisons(found)) for operation, found in rows.items()}
    yield from _summary(comparisons)
    yield from _where_we_lose([one for found in comparisons.values() for one in found])
    for operation, found in rows.items():
        yield from _operation(operation, found, comparisons[operation], name, path)
    yield from _absences(history)


def _environment(history: History, name: str) -> Iterator[str]:
    environment = history.environments.get(name, {})
    marks = Counter(series.newest.mark for series in history.series)
    if marks:
        commits = ", ".join(f"`{mark}` ({count} series)" for mark, count in marks.most_common())
        yield from (f"Commits of the numbers below: {commits}.", "")
        if any(series.newest.dirty for series in history.series):
            yield from ("**Some numbers come from a tree with uncommitted changes (`-dirty`): no baseline.**", "")
    yield from ("| machine | |", "|---|---|")
    for fact in FACTS:
        value = environment.get(fact)
        if value is not None:
            text = amount(value, "byte") if fact.endswith("_bytes") else _plain(value)
            yield f"| {fact.removesuffix('_bytes').replace('_', ' ')} | {cell(text)} |"
    yield ""


def _rows(history: History) -> dict[str, list[_Row]]:
    """Rows per operation, in the order in which they were recorded."""
    gathered: dict[Subject, dict[str, Series]] = defaultdict(dict)
    for series in history.series:
        gathered[series.key.subject][series.key.metric] = series
    rows: dict[str, list[_Row]] = defaultdict(list)
    for subject, metrics in gathered.items():
        one = next(iter(metrics.values()))
        rows[subject.operation].append(_Row(subject, one.role, one.params, metrics))
    return rows


def _case(subject: Subject) -> Subject:
    return replace(subject, implementation="")


def _comparisons(rows: Sequence[_Row]) -> Iterator[_Versus]:
    """Every row with a time against every baseline of its case.

    A rival counts as one: it computes the uncompressed answer, which is the alternative that a user has.
    """
    timed = [row for row in rows if row.time is not None]
    by_case: dict[Subject, list[_Row]] = defaultdict(list)
    for row in timed:
        if row.role != "kernel":
            by_case[_case(row.subject)].append(row)
    for row in timed:
        for other in by_case[_case(row.subject)]:
            if other is row or row.time is None or other.time is None:
                continue
            found = ratio(row.time, other.time)
            if found is not None:
                yield _Versus(row, other, found)


def _summary(comparisons: Mapping[str, Sequence[_Versus]]) -> Iterator[str]:
    yield from ("### Summary", "")
    yield "| operation | kernel | against | cases | faster | not shown | slower | best | worst |"
    yield "|---|---|---|---:|---:|---:|---:|---|---|"
    for operation, found in comparisons.items():
        pairs: dict[tuple[str, str], list[_Versus]] = defaultdict(list)
        for one in found:
            if one.row.role == "kernel":
                pairs[one.row.subject.implementation, one.baseline.subject.implementation].append(one)
        for (kernel, baseline), group in pairs.items():
            faster = sum(one.significant and one.ratio.value < 1 for one in group)
            slower = sum(one.significant and one.ratio.value > 1 for one in group)
            ordered = sorted(group, key=lambda one: one.ratio.value)
            cells = (operation, kernel, baseline, len(group), faster, len(group) - faster - slower, slower,
                     ordered[0].words, ordered[-1].words)  # fmt: skip
            yield _line(cells)
    yield from ("", "† against a rival: it computes the uncompressed answer, which is not the same one.", "")


def _where_we_lose(comparisons: Sequence[_Versus]) -> Iterator[str]:
    """Kernels slower than a baseline: the worst of the cases that differ only in compression or beta, worst first."""
    ours = [one for one in comparisons if one.row.role == "kernel"]
    lost = [one for one in ours if one.significant and one.ratio.value > 1]
    yield from ("### Where we lose", "", f"{len(lost)} of {len(ours)} comparisons of a kernel with a baseline.", "")
    if not lost:
        return
    groups: dict[tuple[Any, ...], list[_Versus]] = defaultdict(list)
    for one in sorted(lost, key=lambda one: -one.ratio.value):
        case = tuple((name, value) for name, value in one.row.facts.items() if name not in ("compression", "beta", "N"))
        subject = one.row.subject
        groups[subject.operation, subject.implementation, one.baseline.subject.implementation, case].append(one)
    yield "| operation | kernel | baseline | lost | worst case | time | baseline's time | kernel is | range |"
    yield "|---|---|---|---:|---|---|---|---|---|"
    for group in list(groups.values())[:WORST]:
        one = group[0]
        subject, other = one.row.subject, one.baseline
        where = f"{subject.case.replace(',', ', ')}, {subject.dtype}, {subject.pass_}"
        interval = f"{one.ratio.low:.3g} to {one.ratio.high:.3g}"
        yield _line(
            (
                subject.operation,
                subject.implementation,
                other.subject.implementation,
                len(group),
                where,
                _time(one.row),
                _time(other),
                one.words,
                interval,
            )
        )
    if len(groups) > WORST:
        yield from ("", f"{len(groups) - WORST} milder ones are in the tables below.")
    yield ""


def _operation(
    operation: str, rows: Sequence[_Row], comparisons: Sequence[_Versus], machine: str, path: Path
) -> Iterator[str]:
    """The table of one operation, in place or in a file of its own."""
    yield from (f"### {operation}", "")
    table = list(_table(rows, comparisons))
    if len(rows) <= INLINE_ROWS:
        yield from (*table, "")
        return
    own = path.parent / "report" / machine / f"{operation}.md"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("\n".join([f"# {operation} on {machine}", "", *table, ""]), encoding="utf-8")
    link = own.relative_to(path.parent).as_posix()
    yield from (f"{len(rows)} rows: [the whole table]({link}).", "")


def _table(rows: Sequence[_Row], comparisons: Sequence[_Versus]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.facts))
    varying = [name for name in names if len({row.facts.get(name) for row in rows}) > 1]
    fixed = ", ".join(f"{name}={_plain(rows[0].facts[name])}" for name in names if name not in varying)
    baselines = list(dict.fromkeys(one.baseline.subject.implementation for one in comparisons))
    columns = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    other = sorted({name for row in rows for name in row.metrics} - {"device_time", *COLUMNS})
    versus = {(one.row.subject, one.baseline.subject.implementation): one for one in comparisons}
    yield from (f"All rows: {cell(fixed)}.", "")
    titles = [COLUMNS.get(name, name.replace("_", " ")) for name in (*columns, *other)]
    yield _line(
        (*varying, "implementation", "role", "time [quartiles]", *(f"against {name}" for name in baselines), *titles)
    )
    yield "|---" * (len(varying) + 3 + len(baselines) + len(titles)) + "|"
    order = {name: {value: index for index, value in enumerate(_ordered(rows, name))} for name in varying}
    for row in sorted(rows, key=lambda row: [order[name][row.facts.get(name)] for name in varying]):
        case = (_plain(row.facts.get(name, "")) for name in varying)
        against = (versus.get((row.subject, name)) for name in baselines)
        yield _line((*case, row.subject.implementation, row.role, _time(row),
                     *("" if one is None else one.words for one in against),
                     *(_metric(row, name) for name in (*columns, *other))))  # fmt: skip


def _ordered(rows: Sequence[_Row], name: str) -> list[Any]:
    """Numbers by size, anything else in the order of appearance."""
    values = list(dict.fromkeys(row.facts.get(name) for row in rows))
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def _absences(history: History) -> Iterator[str]:
    yield from ("### Skipped and failed", "")
    if not history.absences:
        yield from ("Nothing was skipped and nothing failed.", "")
        return
    counted = Counter(
        (absence.failure or absence.status, absence.subject.operation, absence.subject.implementation, absence.reason)
        for absence in history.absences
    )
    yield from ("| cases | what | operation | implementation | reason |", "|---:|---|---|---|---|")
    for (status, operation, implementation, reason), count in sorted(counted.items(), key=lambda one: -one[1]):
        what = status if status == "skipped" else f"failed: {status}"
        yield _line((count, what, operation, implementation, reason))
    yield ""


def _damage(history: History) -> Iterator[str]:
    if history.damage:
        yield from (f"**{len(history.damage)} damaged places in the stored results were not used:**", "")
        yield from (f"- {code(damage.path.name)} line {damage.line}: {cell(damage.why)}" for damage in history.damage)
        yield ""


def _time(row: _Row) -> str:
    point = row.time
    if point is None:
        return ""
    return spread(point.value, point.q25, point.q75, "second")


def _metric(row: _Row, name: str) -> str:
    series = row.metrics.get(name)
    if series is None:
        return ""
    value = series.newest.value
    if name in ("achieved_compression", "kept_fraction", "approximation_error", "approximation_error_sym"):
        return f"{100 * value:.3g} %"
    return amount(value, series.key.unit)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(cell(str(one)) for one in cells) + " |"


def _wrapped(paragraph: str) -> list[str]:
    return paragraph.strip().split("\n")
