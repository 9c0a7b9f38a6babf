"""Is B faster than A, and still right? Two states of the kernels under one harness, in pairs of fresh processes.

A state is a commit, measured in a git worktree of its own; the working tree, as it stands; or record files, read as
they are. Both run in the same environment and under this harness, so that a change of the harness is not taken for one
of the kernels. The two processes of a pair take turns case by case, lap by lap (see `turns`), so that they see the same
host; where baselines are named, the ratio to what they did in the same rounds is compared instead. A verdict must
survive the correction for the many series of a run (Benjamini and Hochberg): where nothing changed, one run in a
hundred says that something did.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import stats

from spectralbench.interval import student
from spectralbench.record import Record, read_file
from spectralbench.turns import CompareError

WORKING_TREE = "."
Word = Literal["FASTER", "SAME", "SLOWER", "CANNOT TELL", "WRONG", "LESS EXACT"]

CONFIDENCE = 0.99
"""Of the interval of one ratio, and that a run in which nothing changed says so."""
MARGIN = 0.03
"""Ratios within this of 1 are the same, where nobody says otherwise."""
FASTEST = 0.25
"""The quantile of the samples of a lap that is compared: what a busy host does to a sample makes it longer."""
LESS_EXACT = 2.0
"""An error that grows by more than this has bought the time."""

Series = tuple[str, ...]
"""Operation, implementation, case, dtype, pass, launch, cache."""
Times = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Compared:
    """One series: time of B over time of A, both over the control where there is one.

    interval: of the ratio at `CONFIDENCE`, None with fewer than two pairs. control: the baselines it was held against.
    needed: pairs of processes after which the interval should be narrow enough to decide, where it is not.
    errors: rounding errors of A and B, where both are known. why: of a WRONG.
    """

    series: Series
    word: Word
    ratio: float
    interval: tuple[float, float] | None
    pairs: int
    control: tuple[str, ...]
    needed: int | None = None
    errors: tuple[float, float] | None = None
    why: str | None = None


@contextmanager
def checkout(state: str, repository: Path, scratch: Path) -> Iterator[Path]:
    """The folder with the kernels of a state: the repository itself for the working tree, else a git worktree.

    Raises: CompareError on a name that git does not know.
    """
    if state == WORKING_TREE:
        yield repository
        return
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{state}^{{commit}}")
    if not commit:
        raise CompareError(
            f"{state!r} is no commit, branch or tag here, no record file, and not '.' (the working tree)"
        )
    tree = Path(tempfile.mkdtemp(dir=scratch)) / commit[:12]  # both states may be one commit
    _git(repository, "worktree", "add", "--detach", "--force", str(tree), commit, must=True)
    try:
        yield tree
    finally:
        _git(repository, "worktree", "remove", "--force", str(tree))
        _git(repository, "worktree", "prune")


def processes_of(paths: Sequence[Path]) -> list[list[Record]]:
    """The records of stored files, one list per process."""
    found: dict[tuple[str, int], list[Record]] = {}
    for path in paths:
        for record in read_file(path).records:
            found.setdefault((path.name, record.replicate), []).append(record)
    return list(found.values())


def judge(
    a: Sequence[Sequence[Record]],
    b: Sequence[Sequence[Record]],
    controls: Sequence[str],
    margin: float = MARGIN,
) -> list[Compared]:
    """One verdict per series that both sides have, worst first.

    a, b: the records of each process, in the order of their pairs. controls: implementations that did not change;
    they are judged without a control, so that a reader sees what the host did.
    """
    sides = [[_times(process) for process in side] for side in (a, b)]
    known = [set().union(*map(set, side)) if side else set() for side in sides]
    failed = _failures(b)
    ratios: list[Compared] = []
    judged: list[tuple[Compared, float]] = []
    for series in sorted(known[0] & (known[1] | failed.keys())):
        if series in failed:
            ratios.append(Compared(series, "WRONG", math.nan, None, 0, (), why=failed[series]))
            continue
        held = [name for name in controls if name != series[1] and series[1] not in controls]
        logs, used = _logs(sides[0], sides[1], series, held)
        if logs:
            judged.append(_verdict(series, logs, used, margin, _errors(a, b, series)))
    chances = stats.false_discovery_control([chance for _, chance in judged]) if judged else ()
    for (ratio, _), chance in zip(judged, chances, strict=True):
        doubtful = ratio.word in _CHANGED and chance > 1 - CONFIDENCE
        ratios.append(replace(ratio, word="CANNOT TELL", needed=ratio.pairs + 2) if doubtful else ratio)
    return sorted(
        ratios, key=lambda found: (-_WORST[found.word], -(found.ratio if found.ratio == found.ratio else 9.0))
    )


_CHANGED = ("SLOWER", "FASTER", "LESS EXACT")
_WORST: Mapping[str, int] = {"WRONG": 5, "SLOWER": 4, "LESS EXACT": 3, "CANNOT TELL": 2, "FASTER": 1, "SAME": 0}


def exit_code(found: Sequence[Compared]) -> int:
    """0 fine, 1 something is slower or wrong, 3 nothing could be compared or decided."""
    words = {ratio.word for ratio in found}
    if words & {"SLOWER", "WRONG"}:
        return 1
    return 0 if words & {"FASTER", "SAME", "LESS EXACT"} else 3


def _times(process: Sequence[Record]) -> dict[Series, list[float | None]]:
    """The time of every series of a process, lap by lap; None for a lap without one."""
    laps: dict[Series, list[float | None]] = {}
    for record in process:
        time = record.metric("device_time") if record.status == "measured" else None
        positive = time.samples if time is not None and min(time.samples) > 0 else ()
        laps.setdefault(_series(record), []).append(float(np.quantile(positive, FASTEST)) if positive else None)
    return {series: found for series, found in laps.items() if any(found)}


def _series(record: Record) -> Series:
    return (
        record.operation,
        record.implementation,
        record.case_id,
        record.dtype,
        record.pass_,
        record.launch,
        record.cache,
    )


def _failures(processes: Sequence[Sequence[Record]]) -> dict[Series, str]:
    return {
        _series(record): f"{record.failure}: {record.reason}"
        for process in processes
        for record in process
        if record.status == "failed"
    }


def _logs(
    a: Sequence[Mapping[Series, Times]], b: Sequence[Mapping[Series, Times]], series: Series, controls: Sequence[str]
) -> tuple[list[float], tuple[str, ...]]:
    """log(B / A) of each pair of processes, less what the controls of the same case did; and who they were.

    It is the median over laps of what the two did one right after the other. The laps are not thrown together: one in
    which the host is quiet needs a tenth of the samples of another, so each side would be seen in other seconds.
    """
    pairs = [(first, second) for first, second in zip(a, b, strict=False) if series in first and series in second]

    def laps(pair: tuple[Mapping[Series, Times], Mapping[Series, Times]], name: str) -> dict[int, float]:
        of = (series[0], name, *series[2:])
        times = enumerate(zip(pair[0].get(of, ()), pair[1].get(of, ()), strict=False))
        return {lap: math.log(second / first) for lap, (first, second) in times if first and second}

    own = [laps(pair, series[1]) for pair in pairs]
    beside = {name: [laps(pair, name) for pair in pairs] for name in controls}
    used = tuple(
        name
        for name, found in beside.items()
        if pairs and all(one.keys() <= other.keys() for one, other in zip(own, found, strict=True))
    )
    return [
        statistics.median(
            log - (statistics.median(beside[name][number][lap] for name in used) if used else 0.0)
            for lap, log in found.items()
        )
        for number, found in enumerate(own)
        if found
    ], used


def _errors(a: Sequence[Sequence[Record]], b: Sequence[Sequence[Record]], series: Series) -> tuple[float, float] | None:
    def worst(side: Sequence[Sequence[Record]]) -> float | None:
        samples = [
            found.median
            for process in side
            for record in process
            if _series(record) == series and (found := record.metric("rounding_error")) is not None
        ]
        return max(samples, default=None)

    first, second = worst(a), worst(b)
    return None if first is None or second is None else (first, second)


def _verdict(
    series: Series, logs: Sequence[float], used: tuple[str, ...], margin: float, errors: tuple[float, float] | None
) -> tuple[Compared, float]:
    """What one series says by itself, and how probable that is where nothing changed."""
    found = student(logs, CONFIDENCE)
    if len(logs) < 2:
        return Compared(series, "CANNOT TELL", found.middle, None, len(logs), used, 2, errors), found.p
    word: Word = "CANNOT TELL"
    if 1 / (1 + margin) <= found.low and found.high <= 1 + margin:
        word = "SAME"
    elif found.high < 1 and found.middle <= 1 / (1 + margin):
        word = "FASTER"
    elif found.low > 1 and found.middle >= 1 + margin:
        word = "SLOWER"
    if word == "FASTER" and errors is not None and errors[1] > LESS_EXACT * errors[0] > 0:
        word = "LESS EXACT"
    needed = None
    if word == "CANNOT TELL":
        # A normal quantile may promise less than the t interval of so few pairs has kept.
        needed = max(len(logs) + 1, _needed(statistics.stdev(logs), math.log(found.middle), math.log1p(margin)))
    return Compared(series, word, found.middle, (found.low, found.high), len(logs), used, needed, errors), found.p


def _needed(spread: float, middle: float, inner: float) -> int:
    """Pairs after which the interval would leave either 1 or the border of what is the same, if it stays as it is."""
    distance = max(abs(abs(middle) - inner) if abs(middle) < inner else abs(middle), inner / 4)
    return max(3, math.ceil((float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * spread / distance) ** 2) + 2)


def _git(root: Path, *arguments: str, must: bool = False) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if must and done.returncode != 0:
        raise CompareError(f"git {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""
