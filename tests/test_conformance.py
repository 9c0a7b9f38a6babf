"""Every implementation of every operation, on every smoke case, against the float64 reference; found by walking."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from effort import DRAW, EFFORT, covering
from guarded_interpreter import interpreter
from torch import Tensor

from spectralkernels.declare import Block, Case, Implementation, Operation, with_seed
from spectralkernels.dispatch import why_not
from spectralkernels.launch import interpreted, triton_unavailable
from spectralkernels.ops import load_operations
from spectralkernels.tf32 import tf32_unavailable

Point = tuple[Operation, Case, Block, Implementation]


def points(operation: Operation) -> list[Point]:
    """Every implementation of an operation on every smoke case that is meant for it."""
    cases = {case.id + case.dtype: (case, block) for case, block in operation.cases("smoke")}
    return [
        (operation, case, block, subject)
        for case, block in cases.values()
        for subject in operation.subjects
        if block.implementations is None or subject.name in block.implementations
    ]


def prepared(subject: Implementation, inputs: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(what its `call` takes, why it does not run that here)."""
    reason = subject.available("cpu")
    if reason is not None:
        return inputs, reason
    taken = subject.prepare(**inputs) if subject.prepare else inputs
    return taken, why_not(subject, "cpu", taken)


@lru_cache(maxsize=1)
def inputs_of(operation: str, case: Case) -> dict[str, Any]:
    return load_operations()[operation].make_inputs(with_seed(case, 0), "cpu")


def serves(point: Point) -> bool:
    operation, case, _, subject = point
    return prepared(subject, inputs_of(operation.name, case))[1] is None


def chosen(operation: Operation) -> list[Point]:
    """The points of this run: the ones that are served, and one of each implementation that this machine lacks
    something for, to say what. TF32 is for a CUDA device, as in `test_gpu_capture`.

    Triton's interpreter is slow: where the effort is not full, cases are drawn so that every kernel runs one of each
    dtype that it serves, and some kernel each case.
    """
    mine = [point for point in points(operation) if (point[3].engine == "triton") == interpreted()]
    served = [point for point in mine if serves(point)]
    if EFFORT <= 1 and interpreted():
        return covering(
            served, lambda point: [("case", point[1].id, point[1].dtype), (point[3].name, point[1].dtype)], DRAW
        )
    lacking = {point[3].name: point for point in mine if point[3].available("cpu") is not None}
    return served + [point for point in lacking.values() if point[3].available is not tf32_unavailable]


POINTS = [
    pytest.param(
        *point,
        id=f"{operation.name}-{point[3].name}-{point[1].dtype}-{point[1].id}",
        marks=[interpreter] if point[3].engine == "triton" else [],
    )
    for operation in load_operations().values()
    for point in chosen(operation)
]


@pytest.mark.parametrize(("operation", "case", "block", "subject"), POINTS)
def test_implementation_agrees_with_the_reference(
    operation: Operation, case: Case, block: Block, subject: Implementation, seed: int
):
    inputs = operation.make_inputs(with_seed(case, seed), "cpu")
    assert subject.available("cpu") is None or not interpreted(), "the interpreter runs every Triton kernel"
    taken, reason = prepared(subject, inputs)
    if reason is not None:
        pytest.skip(reason)
    want: Tensor = operation.reference_of(subject)(**inputs)
    got: Tensor = operation.dense(subject.call(**taken))
    assert got.shape == want.shape
    assert torch.isfinite(torch.view_as_real(got) if got.is_complex() else got).all()
    precise = torch.complex128 if want.is_complex() else torch.float64
    error = float((got.to(precise) - want).norm() / want.norm())
    tolerance = subject.tolerance or operation.tolerance
    assert error <= tolerance.at(case), tolerance.because


@pytest.mark.parametrize("operation", load_operations().values(), ids=lambda operation: operation.name)
def test_declaration_is_whole(operation: Operation):
    names = [subject.name for subject in operation.subjects]
    assert len(set(names)) == len(names)
    assert {"kernel", "baseline"} >= {subject.role for subject in operation.implementations}
    assert {"rival"} >= {subject.role for subject in operation.rivals}
    assert set(operation.profiles) >= {"smoke", "quick", "study", "gpu", "asv"}
    assert len(operation.profiles["asv"]) == 1
    for profile, blocks in operation.profiles.items():
        for case, block in operation.cases(profile):
            assert set(block.implementations or ()) <= set(names)
            assert case.dtype in operation.tolerance.relative
            cost = operation.cost(case)
            assert min(cost.bytes_read, cost.bytes_written, cost.flops) > 0, (profile, case.id)
            assert all(n >= 1 for n in operation.fft_size(case))
        assert blocks


@pytest.mark.parametrize("operation", load_operations().values(), ids=lambda operation: operation.name)
def test_inputs_are_a_function_of_the_seed(operation: Operation):
    case = operation.cases("smoke")[0][0]
    first, again, other = (operation.make_inputs(with_seed(case, seed), "cpu") for seed in (1, 1, 2))
    tensors = [name for name, value in first.items() if isinstance(value, Tensor) and value.dtype != torch.bool]
    assert all(torch.equal(first[name], again[name]) for name in tensors)
    assert any(not torch.equal(first[name], other[name]) for name in tensors) or not tensors


def test_triton_kernels_are_those_that_need_a_cuda_device():
    """A kernel is found by its engine, whatever it is called, and that is declared where it needs a device."""
    for operation in load_operations().values():
        assert {subject.name for subject in operation.subjects if subject.engine == "triton"} == {
            subject.name for subject in operation.subjects if subject.available is triton_unavailable
        }


def every_implementation_runs(triton: bool) -> None:
    """Whatever was drawn, each implementation that can run here runs, on each dtype that it serves."""
    for operation in load_operations().values():
        mine = [point for point in points(operation) if (point[3].engine == "triton") == triton]
        here = {point[3].name for point in mine if point[3].available("cpu") is None}
        served = {(point[3].name, point[1].dtype) for point in mine if serves(point)}
        assert {name for name, _ in served} == here, operation.name
        run = [point.values for point in POINTS if point.values[0] is operation]
        assert {(point[3].name, point[1].dtype) for point in run if serves(point)} >= served, operation.name


def test_every_implementation_is_run():
    every_implementation_runs(triton=False)


@interpreter
def test_every_kernel_is_run():
    every_implementation_runs(triton=True)
