"""Which cases of a large matrix a short run takes: each value of each argument, and over many runs each case."""

from __future__ import annotations

import random

import pytest
from effort import covering

KERNELS, SIZES, DTYPES = ("a", "b", "c", "d"), (1, 2, 3), ("float32", "float16")
MATRIX = [(kernel, size, dtype) for kernel in KERNELS for size in SIZES for dtype in DTYPES]


def values(case: tuple[object, ...]) -> list[tuple[int, object]]:
    return list(enumerate(case))


def test_every_value_is_in_a_small_part(seed: int):
    for draw in random.Random(seed).sample(range(2**31), 20):
        part = covering(MATRIX, values, draw)
        assert {value for case in part for value in values(case)} == {
            value for case in MATRIX for value in values(case)
        }
        assert len(KERNELS) <= len(part) <= len(KERNELS) + 2 < len(MATRIX)
        assert part == sorted(part, key=MATRIX.index) == covering(MATRIX, values, draw)


def test_every_case_is_in_some_part(seed: int):
    draws = random.Random(seed).sample(range(2**31), 400)
    assert {case for draw in draws for case in covering(MATRIX, values, draw)} == set(MATRIX)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_cases_that_share_nothing_are_all_taken(count: int):
    assert covering(range(count), lambda case: [case], 7) == list(range(count))


def test_a_matrix_with_holes_is_covered(seed: int):
    """Values that only one case has, beside values that all have."""
    cases = [("lonely", 1), *(("common", size) for size in range(1, 6))]
    for draw in range(20):
        assert ("lonely", 1) in covering(cases, values, seed + draw)
