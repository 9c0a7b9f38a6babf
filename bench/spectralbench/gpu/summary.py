"""summary.md, summary.json and forecast.md, written anew after every stage from what is stored."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectralbench.ceilings import Roofs
from spectralbench.contest import Contender
from spectralbench.gpu import forecast
from spectralbench.gpu.compare import Match, matches, remarks, time
from spectralbench.gpu.judge import Judgement, judge
from spectralbench.gpu.plan import Excluded
from spectralbench.gpu.targets import PUBLISHED, Bandwidth, Saved, SpeedUp
from spectralbench.history import quotient
from spectralbench.quantity import microseconds
from spectralbench.record import Record
from spectralbench.text import lined_up
from spectralkernels.declare import Operation

SHOWN = 12
"""Losses, and notes, on a terminal."""
ROUNDING = "rounding_error"
Lost = tuple[float, Match, Contender, Contender]
"""Their time over ours, where, our best, and the rival."""


@dataclass(frozen=True, slots=True)
class SoFar:
    """What the stages have left so far. notes: what was left out, and why; correctness: the head of that stage."""

    environment: Mapping[str, Any]
    records: Sequence[Record]
    roofs: Roofs | None
    excluded: Excluded
    correctness: str
    notes: Sequence[str]


def write(stored: SoFar, operations: Mapping[str, Operation], out: Path) -> str:
    """Write the files below `out`, each whole or not at all.

    Returns: the short text for a terminal, whose end is what matters most: losses, notes, ceilings, targets, head.
    """
    found = matches(stored.records, operations)
    verdicts = judge(found, stored.records, stored.roofs, stored.excluded)
    lost = _lost(found)
    head, targets = _head(stored, verdicts), _targets(verdicts)
    ceilings, notes = ["## Ceilings", "", *_roof_lines(stored.roofs)], _left_out(stored)
    everyone = [line for one in _promised(found, verdicts) for line in _rows(one, stored.roofs)]
    everyone = ["## Everyone on the rows of the targets", "", *everyone]
    whole = [head, targets, ceilings, _losses(lost, len(lost)), _notes(notes), everyone]
    replace_file(out / "summary.md", _text(whole))
    published = judge(found, stored.records, stored.roofs, stored.excluded, PUBLISHED)
    replace_file(out / "forecast.md", forecast.markdown(verdicts, published))
    replace_file(out / "summary.json", json.dumps(_facts(stored, verdicts, found, lost), indent=1, default=str) + "\n")
    few = [textwrap.shorten(note, 240) for note in notes]
    if len(few) > SHOWN:
        few = [*few[: SHOWN - 1], f"and {len(few) - SHOWN + 1} more"]
    return _text([_losses(lost, SHOWN), _notes(few), ceilings, targets, head, [f"everything: {out / 'summary.md'}"]])


def replace_file(path: Path, text: str) -> None:
    """Put `text` in a file so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _text(sections: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines).strip() for lines in sections) + "\n"


def _head(stored: SoFar, verdicts: Sequence[Judgement]) -> list[str]:
    facts = stored.environment
    commit = facts.get("commit") or f"no commit, source {facts.get('source')}"
    marks = [mark for mark in ("dirty" if facts.get("dirty") else "", _given(facts)) if mark]
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in ("met", "not met", "not measured")}
    return [
        f"# {facts.get('gpu') or facts.get('cpu')}: {', '.join(f'{n} {word}' for word, n in counts.items())}",
        "",
        f"machine {facts['machine']}, {' '.join([f'commit {commit}', *marks])}, torch {facts.get('torch')}, "
        f"triton {facts.get('triton')}, CUDA {facts.get('cuda')}, driver {facts.get('driver')}",
        f"correctness: {stored.correctness}",
    ]


def _targets(verdicts: Sequence[Judgement]) -> list[str]:
    return [
        "## Targets",
        "",
        "Our fastest kernel of the rival's accuracy class or a finer one, against the fastest rival named; time ratios",
        "from CUDA graphs, saved bytes and bandwidth as shares.",
        "",
        *lined_up(
            ("target", "state", "ours", "rival", "value", "wanted", "verdict"),
            [row for verdict in verdicts for row in _verdict_rows(verdict)],
        ),
    ]


def _notes(notes: Sequence[str]) -> list[str]:
    return ["## Left out", "", *([f"- {note}" for note in notes] or ["nothing"])]


def _given(facts: Mapping[str, Any]) -> str:
    return "(as given by --commit)" if facts.get("commit_given") else ""


def _left_out(stored: SoFar) -> list[str]:
    return [*stored.notes, *(f"{' '.join(who)}: {why}" for who, why in stored.excluded.items())]


def _verdict_rows(verdict: Judgement) -> list[tuple[str, ...]]:
    target = verdict.target
    wanted = _wanted(target)
    if not verdict.lines:
        return [(target.name, verdict.why or "", "", "", "", wanted, verdict.word)]
    return [
        (target.name, one.state, one.ours, one.rival or "", _value(target, one.value), wanted,
         "met" if one.met else "not met")
        for one in verdict.lines
    ]  # fmt: skip


def _wanted(target: SpeedUp | Saved | Bandwidth) -> str:
    return f"<= {target.most:g} of x" if isinstance(target, Saved) else f">= {_value(target, target.least)}"


def _value(target: SpeedUp | Saved | Bandwidth, value: float) -> str:
    if isinstance(target, SpeedUp):
        return f"{value:.2f}x"
    return f"{value:.3f} of x" if isinstance(target, Saved) else f"{100 * value:.0f} %"


def _lost(found: Sequence[Match]) -> list[Lost]:
    """Every standing in which a rival beats all of our kernels that are as accurate, the worst first."""
    lost = [(loss[0], one, *loss[1:]) for one in found if (loss := one.loss()) is not None]
    return sorted(lost, key=lambda one: one[0])


def _losses(lost: Sequence[Lost], shown: int) -> list[str]:
    rows = [
        (one.label, one.state.removesuffix(" cache"), *(f"{row.name} {_us(row)}" for row in rows), f"{ratio:.2f}x")
        for ratio, one, *rows in lost[:shown]
    ]
    lines = lined_up(("setting", "state", "ours", "rival", "theirs / ours"), rows)
    more = ["", f"and {len(lost) - shown} more"] if len(lost) > shown else []
    return ["## Rows we lose", "", *([*lines, *more] if lost else ["none among the settings that were timed"])]


def _promised(found: Sequence[Match], verdicts: Sequence[Judgement]) -> list[Match]:
    places = [verdict.target.place for verdict in verdicts]
    held = (one for one in found if one.timed)
    return [one for one in held if any(place.answers(one.case.subject, one.case.params) for place in places)]


def _rows(one: Match, roofs: Roofs | None) -> list[str]:
    heads = ("implementation", "role", "class", "us", "over our best in class", "% of floor", "error", "processes",
             "remarks")  # fmt: skip
    rows = []
    for row in one.timed:
        ours, share, error = one.best_of_ours(one.accuracy(row)), one.floor_share(row, roofs), row.value(ROUNDING)
        over = f"{quotient(time(row), time(ours)):.2f}x" if ours and row.role != "kernel" else ""
        rows.append((
            row.name, row.role, one.accuracy(row) or "", _us(row), over, "" if share is None else f"{100 * share:.0f}",
            "" if error is None else f"{error:.1e}", str(len(time(row).processes)), ", ".join(remarks(row)),
        ))  # fmt: skip
    return [f"{one.label}, {one.state}", "", *lined_up(heads, rows), ""]


def _us(row: Contender) -> str:
    return microseconds(time(row).value)


def _roof_lines(roofs: Roofs | None) -> list[str]:
    if roofs is None:
        return ["not measured"]
    rows = [(f"{level} bytes", f"{rate / 1e9:.4g} GB/s") for level, rate in roofs.bytes_per_second.items()]
    rows += [(f"{name} product", f"{rate / 1e12:.3g} Tflop/s") for name, rate in roofs.flops_per_second.items()]
    rows += [(f"empty launch, {mode}", microseconds(seconds)) for mode, seconds in roofs.launch_seconds.items()]
    rows += [(name, f"not measured: {why}") for name, why in roofs.missing.items()]
    return [*lined_up(("ceiling", "measured"), rows)]


def _facts(
    stored: SoFar, verdicts: Sequence[Judgement], found: Sequence[Match], lost: Sequence[Lost]
) -> dict[str, Any]:
    return {
        "environment": dict(stored.environment),
        "correctness": stored.correctness,
        "targets": [
            {
                "target": one.target.name,
                "verdict": one.word,
                "why": one.why,
                "lines": [asdict(line) for line in one.lines],
            }
            for one in verdicts
        ],
        "losses": [
            {"setting": one.label, "state": one.state, "ours": ours.name, "rival": rival.name, "ratio": ratio}
            for ratio, one, ours, rival in lost
        ],
        "settings": [
            {
                **one.case.facts,
                "operation": one.operation.name,
                "subjects": [_subject(one, row, stored) for row in one.timed],
            }
            for one in found
            if one.timed
        ],
        "roofs": asdict(stored.roofs) if stored.roofs else None,
        "left_out": _left_out(stored),
    }


def _subject(one: Match, row: Contender, stored: SoFar) -> dict[str, Any]:
    """A row as JSON; the records have the rest."""
    return {
        "name": row.name,
        "accuracy": one.accuracy(row),
        "seconds": time(row).value,
        "processes": dict(time(row).processes),
        "floor_share": one.floor_share(row, stored.roofs),
        "remarks": remarks(row),
    }
