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
from spectralbench.gpu import forecast
from spectralbench.gpu.compare import Contestant, Loss, Setting, losses, settings
from spectralbench.gpu.judge import Judgement, judge
from spectralbench.gpu.plan import Excluded
from spectralbench.gpu.tables import microseconds, table
from spectralbench.gpu.targets import Bandwidth, Saved, SpeedUp
from spectralbench.record import Record
from spectralkernels.declare import Operation

SHOWN = 12
"""Losses, and notes, on a terminal."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the stages have left so far. notes: what was left out, and why; correctness: the head of that stage."""

    environment: Mapping[str, Any]
    records: Sequence[Record]
    roofs: Roofs | None
    excluded: Excluded
    correctness: str
    notes: Sequence[str]


def write(stored: Stored, operations: Mapping[str, Operation], out: Path) -> str:
    """Write the files below `out`, each whole or not at all.

    Returns: the short text for a terminal, whose end is what matters most: losses, notes, ceilings, targets, head.
    """
    found = settings(stored.records, operations, stored.roofs)
    verdicts = judge(found, stored.records, stored.roofs, operations, stored.excluded)
    lost = losses(found)
    head, targets = _head(stored, verdicts), _targets(verdicts)
    ceilings, notes = ["## Ceilings", "", *_roof_lines(stored.roofs)], _left_out(stored)
    everyone = [line for setting in _promised(found, verdicts) for line in _setting_lines(setting)]
    everyone = ["## Everyone on the rows of the targets", "", *everyone]
    whole = [head, targets, ceilings, _losses(lost, len(lost)), _notes(notes), everyone]
    replace_file(out / "summary.md", _text(whole))
    replace_file(out / "forecast.md", forecast.markdown(verdicts))
    replace_file(out / "summary.json", json.dumps(_facts(stored, verdicts, found, lost), indent=1, default=str) + "\n")
    few = [textwrap.shorten(note, 240) for note in notes]
    if len(few) > SHOWN:
        few = [*few[: SHOWN - 1], f"and {len(few) - SHOWN + 1} more"]
    return _text([_losses(lost, SHOWN), _notes(few), ceilings, targets, head, [f"everything: {out / 'summary.md'}"]])


def replace_file(path: Path, text: str) -> None:
    """Put `text` in a file so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _text(sections: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines).strip() for lines in sections) + "\n"


def _head(stored: Stored, verdicts: Sequence[Judgement]) -> list[str]:
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
        *table(
            ("target", "state", "ours", "rival", "value", "wanted", "verdict"),
            [row for verdict in verdicts for row in _verdict_rows(verdict)],
        ),
    ]


def _notes(notes: Sequence[str]) -> list[str]:
    return ["## Left out", "", *([f"- {note}" for note in notes] or ["nothing"])]


def _given(facts: Mapping[str, Any]) -> str:
    return "(as given by --commit)" if facts.get("commit_given") else ""


def _left_out(stored: Stored) -> list[str]:
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


def _losses(lost: Sequence[Loss], shown: int) -> list[str]:
    rows = [
        (
            loss.setting.label,
            f"{loss.setting.question.launch}, {loss.setting.question.cache}",
            f"{loss.ours.name} {microseconds(loss.ours.seconds)}",
            f"{loss.rival.name} {microseconds(loss.rival.seconds)}",
            f"{loss.ratio:.2f}x",
        )
        for loss in lost[:shown]
    ]
    lines = table(("setting", "state", "ours", "rival", "theirs / ours"), rows)
    more = ["", f"and {len(lost) - shown} more"] if len(lost) > shown else []
    return ["## Rows we lose", "", *([*lines, *more] if lost else ["none among the settings that were timed"])]


def _promised(found: Sequence[Setting], verdicts: Sequence[Judgement]) -> list[Setting]:
    places = [verdict.target.place for verdict in verdicts]
    return [one for one in found if any(place.answers(one.question, one.params) for place in places)]


def _setting_lines(setting: Setting) -> list[str]:
    ordered = sorted(setting.subjects, key=lambda subject: subject.seconds)
    rows = [_subject_row(setting, subject) for subject in ordered]
    heads = ("implementation", "role", "class", "us", "over our best in class", "% of floor", "error", "processes",
             "remarks")  # fmt: skip
    return [f"{setting.label}, {setting.state}", "", *table(heads, rows), ""]


def _subject_facts(subject: Contestant) -> dict[str, Any]:
    times = {f"{card or 'device'} #{number}": seconds for (card, number), seconds in subject.by_process.items()}
    return {**asdict(subject), "seconds": subject.seconds, "by_process": times}


def _subject_row(setting: Setting, subject: Contestant) -> tuple[str, ...]:
    ours = setting.best_of_ours(subject.accuracy)
    return (
        subject.name,
        subject.role,
        subject.accuracy or "",
        microseconds(subject.seconds),
        f"{subject.times(ours):.2f}x" if ours and subject.role != "kernel" else "",
        "" if subject.floor_share is None else f"{100 * subject.floor_share:.0f}",
        "" if subject.error is None else f"{subject.error:.1e}",
        str(len(subject.by_process)),
        ", ".join([*(["not interleaved"] if subject.alone else []), *subject.remarks]),
    )


def _roof_lines(roofs: Roofs | None) -> list[str]:
    if roofs is None:
        return ["not measured"]
    rows = [(f"{level} bytes", f"{rate / 1e9:.4g} GB/s") for level, rate in roofs.bytes_per_second.items()]
    rows += [(f"{name} product", f"{rate / 1e12:.3g} Tflop/s") for name, rate in roofs.flops_per_second.items()]
    rows += [(f"empty launch, {mode}", microseconds(seconds)) for mode, seconds in roofs.launch_seconds.items()]
    rows += [(name, f"not measured: {why}") for name, why in roofs.missing.items()]
    return table(("ceiling", "measured"), rows)


def _facts(
    stored: Stored, verdicts: Sequence[Judgement], found: Sequence[Setting], lost: Sequence[Loss]
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
            {
                "setting": loss.setting.label,
                "launch": loss.setting.question.launch,
                "cache": loss.setting.question.cache,
                "ours": loss.ours.name,
                "rival": loss.rival.name,
                "ratio": loss.ratio,
            }
            for loss in lost
        ],
        "settings": [
            {
                "operation": one.question.operation,
                "case": dict(one.params),
                "dtype": one.question.dtype,
                "pass": one.question.pass_,
                "launch": one.question.launch,
                "cache": one.question.cache,
                "subjects": [_subject_facts(subject) for subject in one.subjects],
            }
            for one in found
        ],
        "roofs": asdict(stored.roofs) if stored.roofs else None,
        "left_out": _left_out(stored),
    }
