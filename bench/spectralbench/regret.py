"""`python -m spectralbench.regret`: what `impl="auto"` costs on random shapes, against the fastest implementation here.

Each shape is convolved by every implementation of `band_limited_conv1d` or `...2d`, or of `masked_conv2d` if asked,
that may serve it and is no coarser than the operation, one call each in turn, so that a busy machine is busy for all.
The least time of each counts. Regret is the time of auto's choice over that of the fastest; memory is the largest
resident growth in a call of auto that has its constants to make, over that of torch_fft. Shapes beyond a stated size
are drawn again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from spectralbench.choices import equal
from spectralbench.heap import keep_freed_memory, peak_growth
from spectralkernels.autotuning import autotune
from spectralkernels.constants import forget
from spectralkernels.convolution.estimates import seconds
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.sizes import Sizes
from spectralkernels.declare import Case, Implementation, Operation
from spectralkernels.dispatch import resolved, why_not
from spectralkernels.ops import load_operation
from spectralkernels.ops.masked_conv2d.choice import mask_sizes
from spectralkernels.ops.masked_conv2d.profiles import KINDS

MOST_BYTES = 256 << 20
"""Of maps, weight and answer together: larger shapes are drawn again."""
MOST_FFT_BYTES = 2 << 30
"""Of what torch.fft holds of a shape, about: larger ones are drawn again."""
MOST_FLOPS = 10**9
"""At least needed by a shape (`Operation.cost`): what takes longer is drawn again."""
HOPELESS_SECONDS, HOPELESS = 0.5, 8.0
"""Who is estimated to take that long, and so many times as long as auto's choice, is not raced."""
SLOW, PATIENCE = 0.25, 4.0
"""Who takes this many seconds in a second call, and so many times as long as the fastest, drops out of the race."""
SMALL_BYTES = 4 << 20
"""Memory is compared with torch_fft's, or with this where that is less."""
WORST = 10
GOAL, MEMORY_GOAL = 1.2, 4.0


@dataclass(frozen=True, slots=True)
class Row:
    """One shape: what auto takes, the least seconds of everyone, and the bytes that auto and torch_fft need.

    params: of the case, by name.
    """

    operation: str
    case: str
    chosen: str
    seconds: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)
    bytes: Mapping[str, float] = field(default_factory=dict)

    @property
    def fastest(self) -> str:
        return min(self.seconds, key=lambda name: self.seconds[name])

    @property
    def regret(self) -> float:
        """Times that auto's choice takes longer than the fastest; 1 is the best."""
        return self.seconds[self.chosen] / self.seconds[self.fastest]

    @property
    def memory(self) -> float | None:
        """Bytes of auto over those of torch_fft or `SMALL_BYTES`, where they were measured."""
        return self.bytes["auto"] / max(SMALL_BYTES, self.bytes["torch_fft"]) if self.bytes else None


def draw(chance: random.Random, masked: bool = False) -> Case:
    """A random shape: sizes are log-uniform, a quarter without compression, a third in groups (half of them depthwise).

    K 1 to 63, 1 to 512 channels, sides 4 to 1024 or series of 16 to 65,536 samples, batch 1 to 32, c to 0.95.
    masked: maps of sides to 128 under a mask of any kind, without groups.
    """
    while True:
        series = not masked and chance.random() < 0.4
        channels, out_channels = _log(chance, 1, 512), _log(chance, 1, 512)
        groups = 1
        if not masked and chance.random() < 1 / 3:
            out_channels = channels
            groups = channels if chance.random() < 0.5 else chance.choice(_divisors(channels))
        sizes: dict[str, Any] = {"batch": _log(chance, 1, 32), "in_channels": channels, "out_channels": out_channels}
        if series:
            sizes["length"] = _log(chance, 16, 65536)
        else:
            longest = 128 if masked else 1024
            sizes["height"] = _log(chance, 4, longest)
            sizes["width"] = sizes["height"] if chance.random() < 0.5 else _log(chance, 4, longest)
        compression = 0.0 if chance.random() < 0.25 else round(chance.uniform(0.01, 0.95), 2)
        rest: dict[str, Any] = {"kernel_size": _log(chance, 1, 63)}
        if masked:
            name, rest["mask"], rest["rate"] = "masked_conv2d", chance.choice(KINDS), compression
        else:
            name = "band_limited_conv1d" if series else "band_limited_conv2d"
            rest |= {"groups": groups, "compression": compression}
        case = Case(name, tuple({**sizes, **rest, "grid": "tight", "input": "white"}.items()))
        if _fits(case):
            return case


def _fits(case: Case) -> bool:
    """Whether a shape is within the stated memory and time."""
    cost = load_operation(case.operation).cost(case)
    sizes = sizes_of(case)
    held = 3 * sizes.itemsize * sum(sizes.planes) * math.prod(sizes.band.n)
    return cost.bytes <= MOST_BYTES and cost.flops <= MOST_FLOPS and held <= MOST_FFT_BYTES


def sizes_of(case: Case) -> Sizes:
    """What a case costs, a mask aside."""
    params: dict[str, Any] = dict(case.params)
    size = tuple(params[name] for name in ("length", "height", "width") if name in params)
    band = conv_band(
        size, (case["kernel_size"],) * len(size), compression=params.get("compression", 0.0), grid=case["grid"]
    )
    return Sizes(case["batch"], case["in_channels"], case["out_channels"], params.get("groups", 1), band)


def _log(chance: random.Random, least: int, most: int) -> int:
    return min(most, int(math.exp(chance.uniform(math.log(least), math.log(most + 1)))))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def serving(
    operation: Operation, case: Case, inputs: Mapping[str, Any], chosen: str, training: bool = False
) -> list[Implementation]:
    """Who may be raced on a CPU: as exact as the operation, at once, from the inputs as they are, and not hopeless."""
    sizes, arguments = sizes_of(case), dict(inputs)
    if "modes" in inputs:
        sizes = mask_sizes(*(inputs[name] for name in ("x", "weight", "band", "modes", "groups")))
    longest = max(HOPELESS_SECONDS, HOPELESS * seconds(chosen, sizes, training))
    return [
        found
        for found in operation.implementations
        if not found.compiled
        and not found.foreign
        and why_not(found, "cpu", arguments) is None
        and equal(operation, found, case.dtype, arguments)
        and (found.name == chosen or seconds(found.name, sizes, training) <= longest)
    ]


def race(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    keep: str,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = math.inf,
) -> dict[str, float]:
    """The least seconds of each run in `rounds` rounds after two calls, of which the first makes its constants.

    Who is hopeless in the second (`SLOW`, `PATIENCE`) is not asked again, `keep` excepted. seconds: for the rounds.
    """

    def timed(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    for run in runs.values():
        run()
    least = {name: timed(run) for name, run in runs.items()}
    cut = max(SLOW, PATIENCE * min(least.values()))
    racing = [name for name, found in least.items() if name == keep or found <= cut]
    start = clock()
    for _ in range(rounds):
        for name in racing:
            least[name] = min(least[name], timed(runs[name]))
        if clock() - start > seconds:
            break
    return least


def measure(
    case: Case,
    rounds: int,
    most: float,
    weighed: bool,
    training: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    tuned: bool = False,
) -> Row:
    """One shape raced for about `most` seconds, with its backward pass if `training`, and weighed if asked.

    tuned: of what auto takes by measuring beforehand, in place of its estimates.
    """
    operation = load_operation(case.operation)
    inputs = operation.make_inputs(case, "cpu")
    for name in ("x", "weight"):
        inputs[name].requires_grad_(training)
    with torch.set_grad_enabled(training):
        with autotune() if tuned else nullcontext():
            chosen = resolved(operation, "auto", "cpu", inputs).name
        runs = {
            found.name: _run(found, inputs, training) for found in serving(operation, case, inputs, chosen, training)
        }
        bytes_ = {}
        if weighed:
            for name, implementation in (("auto", chosen), ("torch_fft", "torch_fft")):
                run = runs.get(implementation) or _run(operation.implementation(implementation), inputs, training)
                run()
                forget()
                bytes_[name] = peak_growth(run)
        raced = race(runs, rounds, chosen, clock, most)
        return Row(case.operation, case.id, chosen, raced, dict(case.params), bytes_)


def _run(implementation: Implementation, inputs: dict[str, Any], training: bool) -> Callable[[], object]:
    """A call of an implementation, with the gradients of x and weight if `training`."""

    def run() -> object:
        y = implementation.call(**inputs)
        return torch.autograd.grad(y.sum(), (inputs["x"], inputs["weight"])) if training else y

    return run


def summary(rows: Sequence[Row]) -> str:
    """Quantiles of regret and memory, and the rows with the largest of each."""
    if not rows:
        return "no shape was measured"
    regrets = sorted(row.regret for row in rows)
    weights = sorted(row.memory for row in rows if row.memory is not None)
    lines = [f"{len(rows)} shapes; auto takes the fastest in {sum(row.regret == 1.0 for row in rows)}"]
    lines.append(f"regret  {_quantiles(regrets)}; above {GOAL:g}: {sum(each > GOAL for each in regrets)}")
    if weights:
        over = sum(each > MEMORY_GOAL for each in weights)
        lines.append(f"memory  {_quantiles(weights)} of torch_fft; above {MEMORY_GOAL:g}: {over}")
    lines += ["", "largest regrets:"]
    for row in sorted(rows, key=lambda row: -row.regret)[:WORST]:
        own, best = row.seconds[row.chosen], row.seconds[row.fastest]
        lines.append(
            f"{row.regret:6.2f}  {row.chosen} {own * 1e3:.3g} ms, {row.fastest} {best * 1e3:.3g} ms  "
            f"{row.operation}[{row.case}]"
        )
    heavy = [row for row in rows if row.memory is not None and row.memory > MEMORY_GOAL]
    if heavy:
        lines += ["", "largest memory:"]
    for row in sorted(heavy, key=lambda row: -(row.memory or 0.0))[:WORST]:
        own, other = row.bytes["auto"], row.bytes["torch_fft"]
        lines.append(
            f"{row.memory:6.2f}  {row.chosen} {own / 2**20:.1f} MiB, torch_fft {other / 2**20:.1f} MiB  "
            f"{row.operation}[{row.case}]"
        )
    return "\n".join(lines)


def _quantiles(found: Sequence[float]) -> str:
    p90 = found[min(len(found) - 1, math.ceil(0.9 * len(found)) - 1)]
    return f"median {statistics.median(found):.2f}, p90 {p90:.2f}, max {found[-1]:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, race and print; 0 if every regret and every memory is within the goal, else 1."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    chance, rows, start = random.Random(asked.seed), [], time.monotonic()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(f"seed {asked.seed}, {asked.threads} threads", file=sys.stderr)
    for number in range(asked.shapes):
        if time.monotonic() - start > asked.time_budget:
            print(f"\nout of time after {number} of {asked.shapes} shapes", file=sys.stderr)
            break
        rows.append(
            measure(
                draw(chance, asked.masked),
                asked.rounds,
                asked.seconds,
                not asked.no_memory,
                asked.training,
                clock,
                asked.autotune,
            )
        )
        if asked.json:
            print(json.dumps(asdict(rows[-1])), flush=True)
        print(f"\r{number + 1} of {asked.shapes}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if not asked.json:
        print(summary(rows))
    within = all(row.regret <= GOAL and (row.memory or 0.0) <= MEMORY_GOAL for row in rows)
    return 0 if within else 1


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m spectralbench.regret", description=__doc__)
    made.add_argument("--shapes", type=int, default=80, metavar="N", help="how many (default 80)")
    made.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="default: a fresh one")
    made.add_argument("--time-budget", type=float, default=math.inf, metavar="SECONDS", help="for all shapes")
    made.add_argument("--rounds", type=int, default=7, metavar="N", help="at most, per shape (default 7)")
    made.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of rounds per shape, about (default 1)")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch")
    made.add_argument("--training", action="store_true", help="race forward and backward passes")
    made.add_argument("--autotune", action="store_true", help="of what `sk.autotune` takes, measured before the race")
    made.add_argument("--cpu-time", action="store_true", help="of all threads, for a busy machine; not the wall's time")
    made.add_argument("--masked", action="store_true", help="shapes of masked_conv2d, in place of bands")
    made.add_argument("--no-memory", action="store_true", help="race alone")
    made.add_argument("--json", action="store_true", help="a line per shape on stdout, and no summary")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
