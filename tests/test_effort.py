"""Which cases of a large matrix a short run takes: each value of each argument, and over many runs each case."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from effort import EFFORT, covering, gradcheck, gradgradcheck, some_of
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

KERNELS, SIZES, DTYPES = ("a", "b", "c", "d"), (1, 2, 3), ("float32", "float16")
MATRIX = [(kernel, size, dtype) for kernel in KERNELS for size in SIZES for dtype in DTYPES]


FILES = sorted(Path(__file__).parent.rglob("test_*.py"))


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


@pytest.mark.parametrize("count", [1, 4, 9, 12])
def test_some_are_so_many_in_their_order(count: int):
    part = list(some_of(range(9), count))
    assert part == sorted(set(part)) and len(part) == (9 if EFFORT > 1 else min(count, 9))


class Cubed(torch.autograd.Function):
    """x^3, with what is added to its first derivative, and to its second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(x, first, second)
        return x**3

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, first, second = ctx.saved_tensors
        return dy * (3 * x**2 + first + second * (x - x.detach())).conj(), None, None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_one_wrong_element_of_a_gradient_is_seen(dtype: torch.dtype, seed: int):
    x, right = torch.randn(3, 4, dtype=dtype, requires_grad=True), torch.zeros(3, 4, dtype=dtype)
    wrong = right.clone()
    wrong[1, 2] = 0.5
    assert gradcheck(Cubed.apply, (x, right, right)) and gradgradcheck(Cubed.apply, (x, right, right))
    with pytest.raises(GradcheckError):
        gradcheck(Cubed.apply, (x, wrong, right))
    with pytest.raises(GradcheckError):
        gradgradcheck(Cubed.apply, (x, right, wrong))


def marks(node: ast.FunctionDef | ast.ClassDef) -> str:
    return " ".join(ast.unparse(each) for each in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_check_runs_some_test_of_every_file_and_what_is_drawn_has_cases(path: Path):
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert any("mark.slow" not in marks(node) for node in nodes)
    assert all("parametrize" in marks(node) for node in nodes if "mark.drawn" in marks(node))
