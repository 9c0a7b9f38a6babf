"""Write REPORT.md and index.html from stored results: five answers on a screen, everything else folded below them.

What won where; from which K, c or beta it pays; what it costs in error and memory; what changed since the commit
before; where we lose. Every number is the median over processes of the newest measured commit. Ratios are taken process
by process, because all implementations of a case are timed interleaved in one process, and against the best layout (or
N) of a rival alone. `history.ratio` says when a ratio is judged.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spectralbench import alert, chosen, names, peaks, rivals
from spectralbench.contest import MARKS, cases
from spectralbench.history import Absence, History, current, load, only_machine
from spectralbench.quantity import amount
from spectralbench.report import changes, costs, details, grids, html, losses, markdown, pictures
from spectralbench.report.page import Block, Detail, Figure, FoldedBlocks, Heading, Table, Text
from spectralbench.settings import VIEWS, Setting
from spectralbench.settings import settings as settings_of

FACTS = ("gpu", "gpu_memory_bytes", "driver", "cuda", "cudnn", "cpu", "cores", "threads", "ram_bytes", "os", "python",
         "torch", "triton", "onednn", "mkl", "flags", "load", "started_at")  # fmt: skip
SHOWN_FIGURES = 2
CROSSOVER_MARKS = (
    "In brackets: 95 % over processes; where it is not judged, the lowest and the highest of them. Not judged: fewer "
    "than three processes measured all of its places, which `spectralbench run OPERATION --processes 3` does; or they "
    "disagree whether there is a crossover at all, which more processes settle, or a place below or above."
)


def write(results: Path | History, out: Path, machine: str | None = None) -> Path:
    """Write the report of one machine or all, and return the path of its Markdown; index.html lies beside it.

    out: a path ending in .md, or a folder for REPORT.md. A page per operation goes below `report/` beside it. Figures
    that lie in `figures/<machine>/` beside it are shown. The machine that measured last comes first.

    Changes are judged as `alert` judges them, by the rules of the pyproject.toml beside the results: a time that
    changed while its code did not is the host's.

    Raises: FileNotFoundError if there are no results; ValueError, naming the known machines, for another one, and for
    rules or fingerprints that cannot be read.
    """
    history = only_machine(results if isinstance(results, History) else load(results), machine)
    path = out if out.suffix == ".md" else out / "REPORT.md"
    choices = results if isinstance(results, Path) else path.parent
    roots = (choices, Path(__file__).parent)
    rules = alert.configured(choices.resolve().parent / "pyproject.toml")
    blocks: list[Block] = [Heading(1, "What was measured, and who won"), *_damage(history)]
    now = current(history)
    started = {name: str(found.get("started_at") or "") for name, found in now.environments.items()}
    for name in sorted(now.machines, key=lambda one: started.get(one, ""), reverse=True):
        own = only_machine(now, name)
        findings = alert.explain(alert.judge(only_machine(history, name), overrides=rules), roots)
        asked, peak = chosen.read(choices, name), peaks.read(choices, name)
        blocks += _machine(own, name, path.parent, asked, peak, findings)
    if not now.machines:
        blocks.append(Text("No records yet: run `spectralbench run` first."))
    markdown.write(blocks, path)
    html.write(blocks, path.with_name("index.html"), "spectralbench: what was measured, and who won")
    return path


def _machine(
    history: History,
    name: str,
    folder: Path,
    choices: Mapping[chosen.Question, chosen.Answer],
    peak: peaks.Peak | None,
    findings: Sequence[alert.Finding],
) -> Iterator[Block]:
    found = cases(history)
    every = [case for own in found.values() for case in own]
    environment = history.environments.get(name, {})
    facts = [str(environment[key]) for key in ("gpu", "cpu") if environment.get(key)]
    yield Heading(2, f"{name}: {', '.join(facts)}" if facts else name)
    yield from _commits(history)
    # In the order in which operations are looked at, so that the one a reader comes for is the first.
    settings = {name: made for name in VIEWS if (made := settings_of(name, found.get(name, ())))}
    yield from _winners(settings)
    yield from _crossovers(settings)
    yield from _prices(settings)
    yield Heading(3, "What changed since the commit before?")
    yield from changes.blocks(history.series, findings)
    yield Heading(3, "Where do we lose?")
    yield from losses.blocks(every, choices)
    yield from _figures(pictures.pictures(folder / "figures" / name))
    yield Heading(3, "Everything else")
    for operation, own in found.items():
        if any(case.timed() for case in own):
            page = Path("report") / name / f"{operation}.md"
            blocks = (*_answers(settings.get(operation, ())), Heading(2, "Every case"), *details.blocks(own, peak))
            yield Detail(f"{names.operation(operation)} on {name}: {len(own)} cases", page, blocks)
    yield FoldedBlocks(f"skipped and failed: {len(history.absences)} cases", tuple(_absences(history)))
    yield FoldedBlocks("the machine", tuple(_facts(environment)))


def _commits(history: History) -> Iterator[Block]:
    times = [one for one in history.series if one.key.metric == "device_time"]
    marks = Counter(one.newest.mark for one in times)
    if marks:
        most = ", ".join(f"{mark} ({count})" for mark, count in marks.most_common(4))
        alone = sum(len(one.newest.processes) < 3 for one in times)
        yield Text(f"The newest times by commit: {most}. {alone} of {len(times)} come from fewer than three processes.")
    if any(one.newest.dirty for one in history.series):
        yield Text("Some numbers come from a tree with uncommitted changes (`-dirty`): no baseline.", strong=True)


def _winners(settings: Mapping[str, Sequence[Setting]]) -> Iterator[Block]:
    """The largest table of the first operation; the others are on their own pages."""
    yield Heading(3, "What won where?")
    if not settings:
        yield Text("Nothing that a table could show was timed.")
        return
    title, table = next(_tables(next(iter(settings.values()))))
    yield Text(f"{title}. The first line of a cell is the winner.")
    yield table
    yield Text(MARKS)


def _tables(own: Sequence[Setting]) -> Iterator[tuple[str, Table]]:
    """The winners of one operation: a table per setting, or one of all where nothing runs down."""
    words = " · ".join(f"x over {rivals.WORDS[family]}" for family in own[0].view.families)
    if own[0].view.down is None:
        yield f"{names.operation(own[0].operation)}: {words}", grids.shapes_table(own)
        return
    for one in own:
        yield f"{one.name}: {words}", grids.winner_table(one)


def _crossovers(settings: Mapping[str, Sequence[Setting]]) -> Iterator[Block]:
    """Of the largest setting of every operation."""
    yield Heading(3, "From where on does it pay?")
    tables = [table for own in settings.values() if (table := grids.crossover_table(own[:1])) is not None]
    if tables:
        yield replace(tables[0], rows=tuple(row for table in tables for row in table.rows))
        yield Text(CROSSOVER_MARKS)
    else:
        yield Text("Nothing was measured at three kernel sizes or betas.")


def _prices(settings: Mapping[str, Sequence[Setting]]) -> Iterator[Block]:
    found = next((prices for own in settings.values() if (prices := costs.prices(own[:1]))), None)
    if found is None:
        return
    setting, table = found[0]
    yield Heading(3, "What does it cost in error and memory?")
    yield Text(f"{setting.name}, before any retraining. {costs.WORDS}")
    yield table


def _answers(own: Sequence[Setting]) -> Iterator[Block]:
    """On the page of one operation: winners, crossovers and prices of all its settings."""
    if not own:
        return
    yield Heading(2, "What won where?")
    yield Text(MARKS)
    for title, table in _tables(own):
        yield from (Text(title, strong=True), table)
    if (places := grids.crossover_table(own)) is not None:
        yield from (Heading(2, "From where on does it pay?"), places)
    if found := costs.prices(own):
        yield from (Heading(2, "What does it cost?"), Text(costs.WORDS))
        for setting, table in found:
            yield from (Text(setting.name, strong=True), table)


def _figures(found: Sequence[Figure]) -> Iterator[Block]:
    if found:
        yield Heading(3, "Figures")
        yield from found[:SHOWN_FIGURES]
    if len(found) > SHOWN_FIGURES:
        yield FoldedBlocks(f"{len(found) - SHOWN_FIGURES} more figures", tuple(found[SHOWN_FIGURES:]))


def _facts(environment: Mapping[str, Any]) -> Iterator[Block]:
    rows = []
    for fact in FACTS:
        value = environment.get(fact)
        if value is not None:
            text = amount(value, "byte") if fact.endswith("_bytes") else _plain(value)
            rows.append((fact.removesuffix("_bytes").replace("_", " "), text))
    yield Table(("what", "here"), tuple(rows))


def _absences(history: History) -> Iterator[Block]:
    if not history.absences:
        yield Text("Nothing was skipped and nothing failed.")
        return
    found: dict[tuple[str, str], list[Absence]] = defaultdict(list)
    for absence in history.absences:
        found[absence.failure or absence.status, _without_numbers(absence.reason)].append(absence)
    rows = tuple(
        (
            str(len(own)),
            status if status == "skipped" else f"failed: {status}",
            _several([names.operation(one.subject.operation) for one in own]),
            _several([one.subject.implementation for one in own]),
            own[0].reason,
        )
        # What failed stands first: a skip is said on purpose.
        for (status, _), own in sorted(found.items(), key=lambda one: (one[0][0] == "skipped", -len(one[1])))
    )
    yield Table(("cases", "what", "operation", "implementation", "reason"), rows, frozenset({0}))


def _without_numbers(reason: str) -> str:
    """What a reason says of every case, so that a row stands for all of them and quotes the first."""
    return re.sub(r"\d[\d.e+-]*", "#", reason)


def _several(found: Sequence[str]) -> str:
    """`dft_triton, dft_triton_tf32 and 12 more`, the commonest first."""
    most = [name for name, _ in Counter(found).most_common()]
    return ", ".join(most) if len(most) <= 3 else f"{', '.join(most[:2])} and {len(most) - 2} more"


def _damage(history: History) -> Iterator[Block]:
    if history.damage:
        yield Text(f"{len(history.damage)} damaged places in the stored results were not used:", strong=True)
        rows = tuple((damage.path.name, str(damage.line), damage.why) for damage in history.damage)
        yield Table(("file", "line", "why"), rows, frozenset({1}))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
