"""Is B faster than A, and still right? Two states of the kernels under one harness, A B B A, in fresh processes.

A state is a commit, measured in a git worktree of its own; the working tree, as it stands; or record files, read as
they are. Both run in the same environment and under this harness, so that a change of the harness is not taken for one
of the kernels. Pairs of processes that follow each other see the same host, and within each process a baseline that is
timed in the same rounds says how quick the host was: what is compared is the ratio to it, pair by pair.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scipy import stats

from spectralbench.record import Record, read_file, read_tree

WORKING_TREE = "."
Word = Literal["FASTER", "SAME", "SLOWER", "CANNOT TELL", "WRONG", "LESS EXACT"]

CONFIDENCE = 0.99
"""Of the interval of one ratio: a run judges dozens."""
MARGIN = 0.03
"""Ratios within this of 1 are the same, where nobody says otherwise."""
LESS_EXACT = 2.0
"""An error that grows by more than this has bought the time."""

Series = tuple[str, ...]
"""Operation, implementation, case, dtype, pass, launch, cache."""


class CompareError(Exception):
    """A state cannot be measured or read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Ratio:
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


@dataclass(frozen=True, slots=True)
class Sweep:
    """What every process measures: arguments of `spectralbench run` beside results and processes.

    time_budget: seconds of one process. own_harness: whether a state is measured by the harness of its own commit.
    """

    arguments: tuple[str, ...]
    time_budget: float | None = None
    own_harness: bool = False


Measure = Callable[[Path, Path, Sweep], list[Record]]
"""(folder that holds kernels/, folder for results, what) -> the records of one fresh process."""


def order(pairs: int) -> str:
    """ABBAABBA...: a drift of the host that is even over time falls on both alike."""
    return "".join("AB" if pair % 2 == 0 else "BA" for pair in range(pairs))


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
    tree = scratch / commit[:12]
    _git(repository, "worktree", "add", "--detach", "--force", str(tree), commit, must=True)
    try:
        yield tree
    finally:
        _git(repository, "worktree", "remove", "--force", str(tree))
        _git(repository, "worktree", "prune")


def measure_once(tree: Path, results: Path, what: Sweep) -> list[Record]:
    """Measure in one fresh process the kernels of `tree`, by default with this harness.

    Raises: CompareError with the end of what the process said, where it gave no record.
    """
    harness = tree / "bench" if what.own_harness else Path(__file__).parents[1]
    command = [sys.executable, "-m", "spectralbench", "run", *what.arguments, "--processes", "1", "--quiet", "--json"]
    command += ["--results", str(results)]
    if what.time_budget is not None:
        command += ["--time-budget", f"{what.time_budget:.0f}"]
    path = os.pathsep.join([str(tree / "kernels"), str(harness)])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    records = [record for file in read_tree(results / "records") for record in file.records]
    if not records:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-8:]
        hint = "" if what.own_harness else " (--own-harness takes the one of their commit)"
        raise CompareError(f"the kernels in {tree} do not run under this harness{hint}:\n" + "\n".join(said))
    return records


def race(
    trees: Mapping[str, Path],
    what: Sweep,
    pairs: int,
    scratch: Path,
    say: Callable[[str], None],
    measure: Measure = measure_once,
) -> dict[str, list[list[Record]]]:
    """Measure A and B `pairs` times each in the order of `order`. Returns: by side, the records of each process."""
    found: dict[str, list[list[Record]]] = {"A": [], "B": []}
    turns = order(pairs)
    for number, side in enumerate(turns, start=1):
        found[side].append(measure(trees[side], scratch / f"{number}-{side}", what))
        say(f"{number}/{len(turns)} {side}: {len(found[side][-1])} records")
    return found


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
) -> list[Ratio]:
    """One verdict per series that both sides have, worst first.

    a, b: the records of each process, in the order of their pairs. controls: implementations that did not change;
    they are judged without a control, so that a reader sees what the host did.
    """
    sides = [[_times(process) for process in side] for side in (a, b)]
    known = [set().union(*map(set, side)) if side else set() for side in sides]
    failed = _failures(b)
    ratios = []
    for series in sorted(known[0] & (known[1] | failed.keys())):
        if series in failed:
            ratios.append(Ratio(series, "WRONG", math.nan, None, 0, (), why=failed[series]))
            continue
        held = [name for name in controls if name != series[1] and series[1] not in controls]
        logs, used = _logs(sides[0], sides[1], series, held)
        if logs:
            ratios.append(_verdict(series, logs, used, margin, _errors(a, b, series)))
    return sorted(
        ratios, key=lambda found: (-_WORST[found.word], -(found.ratio if found.ratio == found.ratio else 9.0))
    )


_WORST: Mapping[str, int] = {"WRONG": 5, "SLOWER": 4, "LESS EXACT": 3, "CANNOT TELL": 2, "FASTER": 1, "SAME": 0}


def exit_code(found: Sequence[Ratio]) -> int:
    """0 fine, 1 something is slower or wrong, 3 nothing could be compared or decided."""
    words = {ratio.word for ratio in found}
    if words & {"SLOWER", "WRONG"}:
        return 1
    return 0 if words & {"FASTER", "SAME", "LESS EXACT"} else 3


def _times(process: Sequence[Record]) -> dict[Series, float]:
    found = {}
    for record in process:
        time = record.metric("device_time")
        if record.status == "measured" and time is not None and time.median > 0:
            found[_series(record)] = time.median
    return found


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
    a: Sequence[Mapping[Series, float]], b: Sequence[Mapping[Series, float]], series: Series, controls: Sequence[str]
) -> tuple[list[float], tuple[str, ...]]:
    """log(B / A) of each pair of processes, less what the controls of the same case did; and who they were."""

    def control(process: Mapping[Series, float], name: str) -> float | None:
        return process.get((series[0], name, *series[2:]))

    pairs = [(first, second) for first, second in zip(a, b, strict=False) if series in first and series in second]
    used = tuple(
        name
        for name in controls
        if pairs and all(control(process, name) is not None for pair in pairs for process in pair)
    )
    logs = []
    for first, second in pairs:
        shift = [math.log((control(second, name) or 1.0) / (control(first, name) or 1.0)) for name in used]
        logs.append(math.log(second[series] / first[series]) - (statistics.median(shift) if shift else 0.0))
    return logs, used


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
) -> Ratio:
    middle, inner = statistics.fmean(logs), math.log1p(margin)
    if len(logs) < 2:
        return Ratio(series, "CANNOT TELL", math.exp(middle), None, len(logs), used, 2, errors)
    spread = statistics.stdev(logs)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1)) * spread / math.sqrt(len(logs))
    least, most = middle - half, middle + half
    interval = math.exp(least), math.exp(most)
    word: Word = "CANNOT TELL"
    if -inner <= least and most <= inner:
        word = "SAME"
    elif most < 0 and middle <= -inner:
        word = "FASTER"
    elif least > 0 and middle >= inner:
        word = "SLOWER"
    if word == "FASTER" and errors is not None and errors[1] > LESS_EXACT * errors[0] > 0:
        word = "LESS EXACT"
    needed = _needed(spread, middle, inner) if word == "CANNOT TELL" else None
    return Ratio(series, word, math.exp(middle), interval, len(logs), used, needed, errors)


def _needed(spread: float, middle: float, inner: float) -> int:
    """Pairs after which the interval would leave either 1 or the border of what is the same, if it stays as it is."""
    distance = max(abs(abs(middle) - inner) if abs(middle) < inner else abs(middle), inner / 4)
    return max(3, math.ceil((float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * spread / distance) ** 2) + 2)


def _git(root: Path, *arguments: str, must: bool = False) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if must and done.returncode != 0:
        raise CompareError(f"git {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""
