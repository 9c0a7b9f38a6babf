"""How often the alert and the report are wrong, and what the alert finds: `python -m spectralbench.simulate`.

Runs of 1,000 series go through the evidence and the false discovery rate of `alert`, for four kinds of noise of equal
variance, with and without a sitting noise of the same size, and for planted steps and drifts. False alarms are counted
as runs with at least one SLOWER; power is that of one changed series among the thousand. Beside each cell stands the
exact (Clopper and Pearson) bound that the truth lies below with 95 %: 299 runs without an alarm show 1 %.
Machines with fewer series, whose noise nobody can learn, are simulated beside them, each with one changed series in a
run of its own. Two identical implementations are compared as the report compares them.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from scipy import stats

from spectralbench import history
from spectralbench.alert.control import freed
from spectralbench.alert.evidence import CREDIBLE, Evidence, weigh
from spectralbench.alert.judging import RATE
from spectralbench.alert.rules import RULES
from spectralbench.alert.tails import Array
from spectralbench.text import table

RUN = 1000
FEWER = (4, 12, 36, 120, 400)
CHANGED = 50
SLOW_HOST = 1.3
KINDS = ("gaussian", "t3", "bimodal", "exponential")
SIZES = (0.005, 0.01, 0.02, 0.04)
EARLIER = (3, 5, 8, 20)
PROCESSES = (1, 3, 5)
CONFIDENCE = 0.95
GOAL = 0.01
PRACTICAL = RULES["device_time"].practical


@dataclass(frozen=True, slots=True)
class NoiseCell:
    """One kind of run: `earlier` points before the newest; sitting: processes of a point share noise of that size.

    change: of the newest point of the first series.
    """

    kind: str
    size: float
    earlier: int
    processes: int
    sitting: bool = False
    series: int = RUN
    change: float = 1.0

    @property
    def title(self) -> str:
        """For a row."""
        shared = ", sitting noise" * self.sitting
        return f"{self.kind} {100 * self.size:g} %, {self.earlier} earlier, {self.processes} processes{shared}"

    @property
    def numbers(self) -> tuple[int, ...]:
        """For a seed."""
        return KINDS.index(self.kind), SIZES.index(self.size), self.earlier, self.processes, self.sitting


@dataclass(frozen=True, slots=True)
class Planted:
    """A change of the first CHANGED series. back: points since a step, None for a drift."""

    title: str
    size: float
    earlier: int
    processes: int
    change: Callable[[int], Array]
    back: int | None


def noise(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Array:
    """Noise of mean 0 and variance 1; bimodal is an 80/20 mixture."""
    if kind == "gaussian":
        return rng.standard_normal(shape)
    if kind == "t3":
        return rng.standard_t(3, shape) / 3**0.5
    if kind == "exponential":
        return rng.exponential(size=shape) - 1
    if kind == "bimodal":
        apart = 2.4
        return apart * ((rng.random(shape) < 0.2) - 0.2) + (1 - 0.16 * apart**2) ** 0.5 * rng.standard_normal(shape)
    raise ValueError(f"unknown kind of noise {kind!r}; known: {', '.join(KINDS)}")


def run(
    rng: np.random.Generator, kind: str, size: float, earlier: int, processes: int, sitting: bool, series: int = RUN
) -> Array:
    """Logarithms of one run of unchanged series, [series, earlier + 1, processes]."""
    shape = (series, earlier + 1, processes)
    level = size * noise(rng, kind, shape)
    if sitting:
        level += size * noise(rng, kind, (*shape[:2], 1))
    return np.log(np.maximum(1 + level, 0.05))


def alarms(found: Evidence) -> Array:
    """Which series of a run are SLOWER."""
    adjusted = stats.false_discovery_control(found.slower)
    return (adjusted <= RATE) & (found.slower <= CREDIBLE) & (np.expm1(found.change) > PRACTICAL)


def found_alone(found: Evidence) -> Array:
    """Which of the first CHANGED series would be SLOWER if it were the only one of its run that changed."""
    p, change = found.slower[:CHANGED], found.change[:CHANGED]
    return (p <= RATE / RUN) & (np.expm1(change) > PRACTICAL)


def bound(alarmed: int, runs: int) -> float:
    """The share that the truth lies below with CONFIDENCE, when `alarmed` of `runs` were seen."""
    return 1.0 if alarmed == runs else float(stats.beta.ppf(CONFIDENCE, alarmed + 1, runs - alarmed))


def counted(cell: NoiseCell, runs: int, seed: Sequence[int]) -> tuple[int, int]:
    """Of `runs` runs: those with any series that is SLOWER, be it the changed one or another, and all such series."""
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(runs):
        values = run(rng, cell.kind, cell.size, cell.earlier, cell.processes, cell.sitting, cell.series)
        values[0, -1] += np.log(cell.change)
        counts.append(_count(values))
    return sum(count > 0 for count in counts), sum(counts)


def _count(values: Array) -> int:
    # Whatever is averaged, no change is larger than the range of a series.
    if (np.ptp(values, axis=(1, 2)) <= np.log1p(PRACTICAL)).all():
        return 0
    return int(alarms(_judged(values)).sum())


def planted(found: Planted, kind: str, sitting: bool, runs: int, seed: Sequence[int]) -> tuple[int, int, int]:
    """Of the changed series of `runs` runs: how many there are, are found, and are found at their commit or beside."""
    rng = np.random.default_rng(seed)
    hits = named = 0
    for _ in range(runs):
        values = run(rng, kind, found.size, found.earlier, found.processes, sitting)
        values[:CHANGED] += found.change(found.earlier + 1)[None, :, None]
        evidence = _judged(values)
        hit = found_alone(evidence)
        hits += int(hit.sum())
        if found.back is not None:
            named += int((hit & (abs(evidence.split[:CHANGED] - (found.earlier + 1 - found.back)) <= 1)).sum())
    return runs * CHANGED, hits, named


def slow_host(kind: str, runs: int, seed: Sequence[int]) -> tuple[int, int]:
    """As `counted`, on the day when every series, the baselines too, takes SLOW_HOST times as long."""
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(runs):
        values = run(rng, kind, 0.02, 8, 3, False)
        values[:, -1] += np.log(SLOW_HOST)
        level = np.median(values[:20], axis=(1, 2), keepdims=True)
        shift = np.broadcast_to(np.median(values[:20] - level, axis=0), values.shape)
        counts.append(int(alarms(_judged(freed(values, shift)[0])).sum()))
    return sum(count > 0 for count in counts), sum(counts)


def identical(kind: str, processes: int, pairs: int, seed: Sequence[int]) -> int:
    """How many of `pairs` pairs of identical implementations the report calls different, at 2 % noise."""
    rng = np.random.default_rng(seed)
    values = 1 + 0.02 * noise(rng, kind, (pairs, 2, processes))
    different = 0
    for pair in values.tolist():
        one, other = (
            history.Point("c", None, "", statistics.median(v), tuple(zip(map(str, range(len(v))), v, strict=True)),
                          min(v), max(v), len(v), ())
            for v in pair
        )  # fmt: skip
        ratio = history.ratio(one, other)
        different += ratio is not None and ratio.significant
    return different


def _judged(values: Array) -> Evidence:
    return weigh(values, alarm=min(RATE / len(values), CREDIBLE), practical=PRACTICAL)


def _step(length: int, back: int, ratio: float) -> Array:
    return np.log(ratio) * (np.arange(length) >= length - back)


def _drift(length: int, commits: int) -> Array:
    return np.log(1.01) * np.maximum(np.arange(length) - length + commits + 1, 0)


def _changes() -> Iterator[Planted]:
    for ratio, size, processes in ((1.10, 0.02, 5), (1.05, 0.01, 5), (1.10, 0.02, 3)):
        title = f"+{100 * (ratio - 1):.0f} % at {100 * size:g} %, {processes} processes, 8 points"
        yield Planted(title, size, 8, processes, partial(_step, back=1, ratio=ratio), 1)
    for back in (1, 2, 3, 11, 30):
        for processes in (3, 5):
            title = f"+10 % at 2 %, {processes} processes, {back} commits back"
            yield Planted(title, 0.02, 40, processes, partial(_step, back=back, ratio=1.10), back)
    for flat in (8, 20):
        for processes in (3, 5):
            title = f"+1 % a commit for 10 commits after {flat}, 2 %, {processes} processes"
            yield Planted(title, 0.02, flat + 9, processes, partial(_drift, commits=10), None)
    for processes in (3, 5):
        title = f"+1 % a commit for all of 40 commits, 2 %, {processes} processes"
        yield Planted(title, 0.02, 39, processes, partial(_drift, commits=40), None)


class _Tables:
    """The tables, computed in `jobs` processes; each cell has a seed of its own, so that any can be had again alone."""

    def __init__(self, runs: int, seed: int, kinds: Sequence[str], jobs: int) -> None:
        self.runs, self.seed, self.kinds = runs, seed, kinds
        self.pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def false(self) -> Iterator[str]:
        """False alarms, cell by cell, and for how many of them the goal is shown."""
        cells = [
            NoiseCell(kind, size, earlier, processes, sitting)
            for kind in self.kinds for size in SIZES for earlier in EARLIER
            for sitting in (False, True) for processes in PROCESSES
        ]  # fmt: skip
        seeds = [(self.seed, 0, *cell.numbers) for cell in cells]
        found = zip(cells, self.pool.map(counted, cells, [self.runs] * len(cells), seeds), strict=True)
        heads = (f"unchanged, {self.runs} runs", "with an alarm (alarms)", f"below, {100 * CONFIDENCE:g} %")
        said: Counter[str] = Counter()
        yield from table(heads, self._alarms(found, said), {1, 2})
        yield ""
        yield f"At most {100 * GOAL:g} % of runs: " + (", ".join(f"{n} cells {what}" for what, n in said.items()))

    def _alarms(
        self, found: Iterable[tuple[NoiseCell, tuple[int, int]]], said: Counter[str]
    ) -> Iterator[tuple[str, ...]]:
        for cell, (alarmed, count) in found:
            most = bound(alarmed, self.runs)
            least = 1 - bound(self.runs - alarmed, self.runs)
            what = "shown" if most <= GOAL else "refuted" if least > GOAL else "open"
            said[what] += 1
            yield cell.title, f"{alarmed} ({count})", f"{100 * most:.2g} %" + f", {what}" * (what != "shown")

    def machine(self) -> Iterator[str]:
        """Runs with an alarm on machines with few series: nothing changed, 4 % noise; and one changed, at 2 % noise."""
        columns = (*(f"{kind}, {n}" for kind in self.kinds for n in (1, 5)), "+10 %", "+20 %", "2 times")
        futures = {}
        for series in FEWER:
            for earlier in (*EARLIER[:3:2], 24):
                cells = [NoiseCell(kind, 0.04, earlier, n, n > 1, series) for kind in self.kinds for n in (1, 5)]
                cells += [NoiseCell("gaussian", 0.02, earlier, 5, False, series, ratio) for ratio in (1.1, 1.2, 2.0)]
                futures[series, earlier] = [
                    self.pool.submit(counted, cell, self.runs, (self.seed, 4, series, earlier, at))
                    for at, cell in enumerate(cells)
                ]
        heads = (f"series x earlier points, {self.runs} runs", *columns)
        yield from table(heads, (
            (f"{series} x {earlier}", *(str(one.result()[0]) for one in found))
            for (series, earlier), found in futures.items()
        ), set(range(1, 1 + len(columns))))  # fmt: skip

    def power(self) -> Iterator[str]:
        """Percent of changed series found, and for steps the percent whose commit is named to within one."""
        columns = [(kind, sitting) for sitting in (False, True) for kind in self.kinds]
        changes = list(_changes())
        futures = {
            (row, column): self.pool.submit(planted, change, *column, self.runs, (self.seed, 1, row, at))
            for row, change in enumerate(changes) for at, column in enumerate(columns)
        }  # fmt: skip
        heads = ("planted", *(kind + ", sitting noise" * sitting for kind, sitting in columns))
        yield from table(heads, (
            (change.title, *(_share(*futures[row, column].result(), change.back) for column in columns))
            for row, change in enumerate(changes)
        ))  # fmt: skip

    def host(self) -> Iterator[str]:
        """Alarms on a slow day of the host."""
        heads = (f"2 % noise, a host {SLOW_HOST} x slower on the newest day", "runs with an alarm (alarms)", "below")
        seeds = [(self.seed, 2, KINDS.index(kind)) for kind in self.kinds]
        found = self.pool.map(slow_host, self.kinds, [self.runs] * len(self.kinds), seeds)
        yield from table(heads, (
            (kind, f"{alarmed} ({count})", f"{100 * bound(alarmed, self.runs):.2g} %")
            for kind, (alarmed, count) in zip(self.kinds, found, strict=True)
        ))  # fmt: skip

    def report(self) -> Iterator[str]:
        """Identical implementations that `report`, `choices`, README and figures would call different."""
        columns = (1, 2, 3, 5, 8)
        pairs = 100 * self.runs
        yield from table(
            (f"identical, called different of {pairs} pairs", *(f"{n} processes" for n in columns)),
            (
                (kind, *(
                    f"{100 * identical(kind, n, pairs, (self.seed, 3, KINDS.index(kind), n)) / pairs:.2g} %"
                    for n in columns
                ))
                for kind in self.kinds
            ),
            set(range(1, 1 + len(columns))),
        )  # fmt: skip


def _share(changed: int, hits: int, named: int, back: int | None) -> str:
    share = f"{100 * hits / changed:.0f}"
    return share + (f", named {100 * named / changed:.0f}" if back is not None and back > 1 else "")


def main() -> None:
    """Print the tables; the seed comes first, so that they can be had again."""
    parser = argparse.ArgumentParser(prog="python -m spectralbench.simulate", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help=f"runs of {RUN} series a cell (299 can show 1 %%)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    names = ("false", "machine", "power", "host", "report")
    parser.add_argument("--table", choices=names, action="append", help="default: all")
    parser.add_argument("--kind", choices=KINDS, action="append", help="of noise; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compute the tables")
    given = parser.parse_args()
    if given.runs < 1 or given.jobs < 1 or given.seed < 0:
        parser.error("expected --runs and --jobs of 1 or more, and --seed of 0 or more")
    print(f"seed {given.seed}, {given.runs} runs of {RUN} series a cell\n", flush=True)
    tables = _Tables(given.runs, given.seed, given.kind or KINDS, given.jobs)
    with tables.pool:
        for name in given.table or names:
            for line in getattr(tables, name)():
                print(line, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
