"""How often the alert is wrong, and what it finds: `python -m spectralbench.simulate [--series 10000] [--seed 1]`.

Runs of 1,000 series go through the evidence and the false discovery rate of `alert`, for four kinds of noise of equal
variance, with and without a sitting noise of the same size, and for planted steps and drifts. False alarms are counted
as runs with at least one SLOWER; power is that of one changed series among the thousand.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from scipy import stats

from spectralbench.alert.control import freed
from spectralbench.alert.evidence import CREDIBLE, Evidence, weigh
from spectralbench.alert.judging import RATE
from spectralbench.alert.rules import RULES
from spectralbench.alert.tails import Array
from spectralbench.text import table

RUN = 1000
CHANGED = 50
SLOW_HOST = 1.3
KINDS = ("gaussian", "t3", "bimodal", "exponential")
PRACTICAL = RULES["device_time"].practical


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


def run(rng: np.random.Generator, kind: str, size: float, earlier: int, processes: int, sitting: bool) -> Array:
    """Logarithms of one run of unchanged series, [RUN, earlier + 1, processes]."""
    shape = (RUN, earlier + 1, processes)
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


def false_alarms(rng: np.random.Generator, runs: int) -> Iterator[str]:
    """Runs with an alarm, and alarms, of `runs` unchanged runs in every cell."""
    heads = ("noise", "earlier points", "1 process", "3", "5", "with sitting noise: 1 process", "3", "5")
    yield from table(heads, _false_alarms(rng, runs), {1})


def _false_alarms(rng: np.random.Generator, runs: int) -> Iterator[tuple[str, ...]]:
    for kind in KINDS:
        for size in (0.005, 0.01, 0.02, 0.04):
            for earlier in (3, 5, 8, 20):
                cells = []
                for sitting in (False, True):
                    for processes in (1, 3, 5):
                        counts = [alarms(_judged(run(rng, kind, size, earlier, processes, sitting))).sum()
                                  for _ in range(runs)]  # fmt: skip
                        cells.append(f"{sum(count > 0 for count in counts)} ({sum(counts)})")
                yield (f"{kind} {100 * size:g} %", str(earlier), *cells)


def power(rng: np.random.Generator, runs: int) -> Iterator[str]:
    """Percent of changed series found, and for steps the percent whose commit is named to within one."""
    steps: list[tuple[str, float, int, int, Callable[[int], Array], int | None]] = [
        ("+10 % at 2 %, 5 processes, 8 points", 0.02, 8, 5, lambda n: _step(n, 1, 1.10), 1),
        ("+5 % at 1 %, 5 processes, 8 points", 0.01, 8, 5, lambda n: _step(n, 1, 1.05), 1),
        ("+10 % at 2 %, 3 processes, 8 points", 0.02, 8, 3, lambda n: _step(n, 1, 1.10), 1),
    ]
    steps += [
        (f"+10 % at 2 %, 3 processes, {back} commits back", 0.02, 40, 3,
         partial(_step, back=back, ratio=1.10), back)
        for back in (1, 2, 3, 11, 30)
    ]  # fmt: skip
    steps += [
        (f"+1 % a commit for 10 commits after {flat}, 2 %, {processes} processes", 0.02, flat + 9, processes,
         partial(_drift, commits=10), None)
        for flat in (8, 20) for processes in (3, 5)
    ]  # fmt: skip
    steps += [
        (f"+1 % a commit for all of 40 commits, 2 %, {processes} processes", 0.02, 39, processes,
         partial(_drift, commits=40), None)
        for processes in (3, 5)
    ]  # fmt: skip
    yield from table(("planted", *KINDS, "gaussian, sitting noise"), _power(rng, runs, steps))


def _power(
    rng: np.random.Generator,
    runs: int,
    steps: Iterable[tuple[str, float, int, int, Callable[[int], Array], int | None]],
) -> Iterator[tuple[str, ...]]:
    for title, size, earlier, processes, change, back in steps:
        cells = []
        for kind, sitting in (*((kind, False) for kind in KINDS), ("gaussian", True)):
            hits, named = [], []
            for _ in range(runs):
                values = run(rng, kind, size, earlier, processes, sitting)
                values[:CHANGED] += change(earlier + 1)[None, :, None]
                found = _judged(values)
                hit = found_alone(found)
                hits.append(hit.mean())
                if back is not None:
                    named.append((hit & (abs(found.split[:CHANGED] - (earlier + 1 - back)) <= 1)).mean())
            cell = f"{100 * np.mean(hits):.0f}"
            cells.append(cell + (f", named {100 * np.mean(named):.0f}" if back is not None and back > 1 else ""))
        yield (title, *cells)


def slow_host(rng: np.random.Generator, runs: int) -> Iterator[str]:
    """Alarms on the day when every series, the baselines too, takes SLOW_HOST times as long."""
    heads = (f"noise, a host {SLOW_HOST} x slower on the newest day", "runs with an alarm (alarms)")
    yield from table(heads, _slow_host(rng, runs))


def _slow_host(rng: np.random.Generator, runs: int) -> Iterator[tuple[str, ...]]:
    for kind in KINDS:
        counts = []
        for _ in range(runs):
            values = run(rng, kind, 0.02, 8, 3, False)
            values[:, -1] += np.log(SLOW_HOST)
            level = np.median(values[:20], axis=(1, 2), keepdims=True)
            shift = np.broadcast_to(np.median(values[:20] - level, axis=0), values.shape)
            counts.append(alarms(_judged(freed(values, shift)[0])).sum())
        yield (f"{kind} 2 %", f"{sum(count > 0 for count in counts)} ({sum(counts)})")


def _judged(values: Array) -> Evidence:
    return weigh(values, alarm=RATE / RUN, practical=PRACTICAL)


def _step(length: int, back: int, ratio: float) -> Array:
    return np.log(ratio) * (np.arange(length) >= length - back)


def _drift(length: int, commits: int) -> Array:
    return np.log(1.01) * np.maximum(np.arange(length) - length + commits + 1, 0)


def main() -> None:
    """Print the tables; the seed comes first, so that they can be had again."""
    parser = argparse.ArgumentParser(prog="python -m spectralbench.simulate", description=__doc__)
    parser.add_argument("--series", type=int, default=10_000, help="unchanged series a cell, in runs of 1,000")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--table", choices=("false", "power", "host"), action="append", help="default: all")
    given = parser.parse_args()
    runs = max(1, given.series // RUN)
    print(f"seed {given.seed}, {runs} runs of {RUN} series a cell\n")
    rng = np.random.default_rng(given.seed)
    tables = {"false": false_alarms, "power": power, "host": slow_host}
    for name in given.table or tables:
        for line in tables[name](rng, runs):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
