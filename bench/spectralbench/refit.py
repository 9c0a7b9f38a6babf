"""`python -m spectralbench.refit LINES...`: the seconds per unit of work that `impl="auto"` chooses by, fitted again.

LINES are files of `python -m spectralbench.regret --json`. Minimised is the sum, over shapes, of what the choices by
estimates cost (the expected logarithm of regret, with a probability for each implementation that falls off with its
estimate), and of how far estimates are from times, robustly and less for who is slow: ratios of estimates choose, and
one shape may find the machine slower than another. What no shape tells of stays as it is. Printed are a table for
`spectralkernels.convolution.fitted` and, on stderr, the regrets of the shapes by it; judge it by other shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralbench.regret import Row, sizes_of, summary
from spectralkernels.convolution.choice import candidates
from spectralkernels.convolution.estimates import taken_from, work
from spectralkernels.convolution.fitted import FORWARD, FORWARD_AND_BACKWARD
from spectralkernels.declare import Case

Table = Mapping[str, Mapping[str, float]]

SHARP = 0.08
"""Difference of two logarithms of estimates that decides, about."""
BUSY = 0.4
"""A shape may have been measured by so much (a logarithm) a slower or faster machine than others."""
ROBUST = 0.3
KEPT = 3e-3
"""Weight of the former constants, one of them a factor e off against a shape that is. Of 185 shapes it takes
1: then the regrets of each fourth of them, held out in turn, are the least."""
LEAST = 1e-13
"""Seconds per unit below which a constant is 0."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What was measured of one, and the work of who was raced; `allowed` are those that auto may take."""

    row: Row
    work: Mapping[str, Mapping[str, float]]
    allowed: tuple[str, ...]


def shape_of(line: Mapping[str, Any], training: bool = False) -> Shape:
    """A line of `regret --json`, with --training if so."""
    row = Row(**line)
    sizes = sizes_of(Case(row.operation, tuple(row.params.items())))
    counted = {name: work(name, sizes, training) for name in row.seconds if taken_from(name) in FORWARD}
    return Shape(row, counted, tuple(name for name in candidates(sizes, plain=True, built=True) if name in counted))


def refitted(
    shapes: Sequence[Shape], table: Table, steps: int = 300, keep: float = KEPT
) -> dict[str, dict[str, float]]:
    """The constants that minimise the above from those of `table` on. keep: see `KEPT`."""
    names = [(name, unit) for name, units in table.items() for unit in units]
    place = {each: index for index, each in enumerate(names)}
    former = torch.tensor([math.log(max(table[name][unit], LEAST)) for name, unit in names], dtype=torch.float64)
    counts, seconds, of_shape, allowed = _arrays(shapes, place)
    best = torch.full((len(shapes),), math.inf, dtype=torch.float64).scatter_reduce(0, of_shape, seconds, "amin")
    slower = (seconds / best[of_shape]).log()
    weight, told = (-slower).exp(), counts.sum(0) > 0
    found = former.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=steps, history_size=30, line_search_fn="strong_wolfe")

    def by_shape(values: Tensor) -> Tensor:
        return torch.zeros(len(shapes), dtype=torch.float64).index_add(0, of_shape, values)

    def loss() -> Tensor:
        optimizer.zero_grad()
        estimate = (counts @ found.exp()).log()
        off = estimate - seconds.log()
        busy = (by_shape(weight * off) / by_shape(weight)).clamp(-BUSY, BUSY)
        spread = (1.0 + ((off - busy[of_shape]) / ROBUST).square()).sqrt() - 1.0
        lead = torch.where(allowed, -estimate / SHARP, -math.inf)
        most = torch.full((len(shapes),), -math.inf, dtype=torch.float64).scatter_reduce(0, of_shape, lead, "amax")
        share = (lead - most[of_shape]).exp()
        regret = by_shape(share * slower) / by_shape(share).clamp(min=1e-300)
        total = (
            10.0 * regret.sum()
            + (weight * spread).sum() * ROBUST
            + keep * len(shapes) * ((found - former).square() * told).mean()
        )
        total.backward()
        return total

    optimizer.step(loss)
    values = torch.where(told, found.detach(), former).exp().tolist()
    made: dict[str, dict[str, float]] = {name: {} for name in table}
    for (name, unit), value in zip(names, values, strict=True):
        made[name][unit] = float(f"{value:.2g}") if value > 2 * LEAST else 0.0
    return made


def _arrays(shapes: Sequence[Shape], place: Mapping[tuple[str, str], int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of whoever was timed at every shape: work [units], seconds, which shape, and whether auto may take it."""
    counts, seconds, of_shape, allowed = [], [], [], []
    for number, shape in enumerate(shapes):
        for name, units in shape.work.items():
            line = torch.zeros(len(place), dtype=torch.float64)
            for unit, count in units.items():
                line[place[taken_from(name), unit]] += count
            counts.append(line)
            seconds.append(shape.row.seconds[name])
            of_shape.append(number)
            allowed.append(name in shape.allowed)
    times = torch.tensor(seconds, dtype=torch.float64)
    return torch.stack(counts), times, torch.tensor(of_shape), torch.tensor(allowed)


def chosen_by(table: Table, shape: Shape) -> Row:
    """The row as if `table` had chosen."""
    cost = {}
    for name in shape.allowed:
        cost[name] = sum(table[taken_from(name)][unit] * count for unit, count in shape.work[name].items())
    row = shape.row
    return Row(row.operation, row.case, min(cost, key=lambda name: cost[name]), row.seconds, row.params, row.bytes)


def written(table: Table) -> str:
    """A table as it stands in `fitted`."""
    lines = []
    for name, units in table.items():
        lines += [
            f'    "{name}": {{',
            *(f'        "{unit}": {seconds:g},' for unit, seconds in units.items()),
            "    },",
        ]
    return "\n".join(["{", *lines, "}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, fit and print."""
    made = argparse.ArgumentParser(prog="python -m spectralbench.refit", description=__doc__)
    made.add_argument("lines", nargs="+", type=Path, help="files that regret --json wrote")
    made.add_argument("--training", action="store_true", help="they are of regret --training")
    made.add_argument("--check", action="store_true", help="fit nothing: the regrets by the constants as they are")
    made.add_argument("--keep", type=float, default=KEPT, help=f"weight of the former constants (default {KEPT:g})")
    asked = made.parse_args(arguments)
    texts = [line for path in asked.lines for line in path.read_text().splitlines()]
    shapes = [shape for line in texts if (shape := shape_of(json.loads(line), asked.training)).allowed]
    table: Table = FORWARD_AND_BACKWARD if asked.training else FORWARD
    if not asked.check:
        table = refitted(shapes, table, keep=asked.keep)
        print(written(table))
    print(summary([chosen_by(table, shape) for shape in shapes]), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
