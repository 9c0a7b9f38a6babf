"""How much a run tests: `make check` 0, one case of every test; `make test` 1, a drawn part of the large matrices of
cases; `make full` 8, all of them and more random shapes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch

EFFORT = int(os.environ.get("SPECTRAL_EFFORT", "1"))
# Of which cases `make test` is: fresh in every run, the same in all of its processes, printed in its header.
DRAW = int(os.environ.setdefault("SPECTRAL_DRAW", str(random.SystemRandom().randrange(2**31))))

Anything = TypeVar("Anything")


def draws(quick: int) -> range:
    """Numbers of the draws of a test that draws `quick` of them in `make test`."""
    return range(quick * max(1, EFFORT))


def in_a_check(position: int, count: int) -> bool:
    """Whether the case at this position of a test's `count` cases is the one that `make check` runs."""
    return position == count // 2


def covering(cases: Sequence[Anything], values: Callable[[Anything], Iterable[Hashable]], draw: int) -> list[Anything]:
    """A drawn part of the cases in which every value of every case is; in their order.

    values: of one case, such as ("precision", "fp16"). Each case in turn is the one with the most values that none
    before it has; the draw decides between equals, so that every case is in the part of some draw.
    """
    shuffled = random.Random(draw).sample(range(len(cases)), len(cases))
    of = {position: set(values(cases[position])) for position in shuffled}
    left, chosen = set().union(*of.values()), set()
    while left:
        best = max(shuffled, key=lambda position: len(of[position] & left))
        chosen.add(best)
        left -= of[best]
    return [case for position, case in enumerate(cases) if position in chosen]


def one_of(values: Sequence[Anything]) -> Sequence[Anything]:
    """One of them, drawn; all in `make full`. For architectures, for each of which one compiles the same kernels."""
    return some_of(values, 1)


def some_of(values: Sequence[Anything], count: int) -> Sequence[Anything]:
    """So many of them, drawn, in their order; all in `make full`. For cases that share no value."""
    places = sorted(random.Random(DRAW).sample(range(len(values)), min(count, len(values))))
    return values if EFFORT > 1 else [values[place] for place in places]


SUM_DIGITS = 1e-6
"""Relative, of a derivative along a direction in float64: central differences of 1e-6 leave 1e-9 and less."""


def gradcheck(function: Callable[..., Any], inputs: Any, *, fast_mode: bool = EFFORT <= 1, **options: Any) -> bool:
    """torch's comparison with finite differences, along a random direction; along every axis in `make full`.

    Along one direction a wrong element is one term of a sum, so that the sum is held to more digits than an element.
    """
    return torch.autograd.gradcheck(function, inputs, fast_mode=fast_mode, **_held(fast_mode, options))


def gradgradcheck(function: Callable[..., Any], inputs: Any, *, fast_mode: bool = EFFORT <= 1, **options: Any) -> bool:
    """As `gradcheck`, of the second derivatives."""
    return torch.autograd.gradgradcheck(function, inputs, fast_mode=fast_mode, **_held(fast_mode, options))


def _held(fast_mode: bool, options: dict[str, Any]) -> dict[str, Any]:
    return {"rtol": SUM_DIGITS, "atol": SUM_DIGITS / 10, **options} if fast_mode else options


def opcheck(operator: Any, arguments: tuple[Any, ...], *, symbols: bool = EFFORT > 1) -> dict[str, str]:
    """torch's own checks of a registered operator.

    symbols: trace it with sizes as symbols, which takes most of the time and which outputs whose size depends on data
    need. The tests of dynamic tracing compile public calls with such sizes in every run.
    """
    traced = "test_aot_dispatch_dynamic" if symbols else "test_aot_dispatch_static"
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", traced]
    return torch.library.opcheck(operator, arguments, test_utils=checks)
