"""Every implementation of every operation, on every smoke case, against the float64 reference; found by walking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from effort import EFFORT
from guarded_interpreter import interpreter
from torch import Tensor

from spectralkernels.declare import Block, Case, Implementation, Operation, with_seed
from spectralkernels.dispatch import why_not
from spectralkernels.launch import interpreted, triton_unavailable
from spectralkernels.ops import load_operations


def in_this_run(operation: Operation, subject: Implementation, case: int) -> bool:
    """Kernels are slow under the interpreter: quickly, each takes every other case, its neighbours the ones between.

    Where five kernels or more share a design, each takes every fifth: no axis of a profile has five values.
    """
    kernels = [each.name for each in operation.subjects if each.engine == "triton"]
    step = 5 if len(kernels) >= 5 else 2
    return EFFORT > 1 or subject.engine != "triton" or (kernels.index(subject.name) + case) % step == 0


POINTS = [
    pytest.param(
        operation,
        case,
        block,
        subject,
        id=f"{operation.name}-{subject.name}-{case.dtype}-{case.id}",
        marks=[interpreter] if subject.engine == "triton" else [],
    )
    for operation in load_operations().values()
    for number, (case, block) in enumerate(
        {case.id + case.dtype: (case, block) for case, block in operation.cases("smoke")}.values()
    )
    for subject in operation.subjects
    if block.implementations is None or subject.name in block.implementations
    if in_this_run(operation, subject, number)
]


def ready(
    operation: Operation, case: Case, subject: Implementation, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, prepared inputs), or a skip with the reason."""
    inputs = operation.make_inputs(with_seed(case, seed), "cpu")
    reason = subject.available("cpu")
    assert reason is None or not interpreted(), "the interpreter runs every Triton kernel"
    if reason is None:
        prepared = subject.prepare(**inputs) if subject.prepare else inputs
        reason = why_not(subject, "cpu", prepared)
    if reason is not None:
        pytest.skip(reason)
    return inputs, prepared


@pytest.mark.parametrize(("operation", "case", "block", "subject"), POINTS)
def test_implementation_agrees_with_the_reference(
    operation: Operation, case: Case, block: Block, subject: Implementation, seed: int
):
    inputs, prepared = ready(operation, case, subject, seed)
    want: Tensor = operation.reference_of(subject)(**inputs)
    got: Tensor = operation.dense(subject.call(**prepared))
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


def test_every_operation_with_a_triton_kernel_has_interpreted_cases():
    """A kernel is found by its engine, whatever it is called, and that is declared where it needs a CUDA device."""
    for operation in load_operations().values():
        ours = [subject for subject in operation.subjects if subject.engine == "triton"]
        assert {subject.name for subject in ours} == {
            subject.name for subject in operation.subjects if subject.available is triton_unavailable
        }
        cases = {
            name for _, block in operation.cases("smoke") for name in block.implementations or [s.name for s in ours]
        }
        assert {subject.name for subject in ours} <= cases, operation.name
        run = {point.values[3].name for point in POINTS if point.values[0] is operation}
        assert {subject.name for subject in ours} <= run, operation.name
