"""What a Triton implementation does beside its launches: nothing that a CUDA graph cannot hold, and few allocations.

Launches are left out, so that the calls run here on large shapes without a GPU; everything around them is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spectralkernels import dispatch
from spectralkernels.declare import Case, Implementation, Operation
from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import NAMESPACE, OPERATORS
from spectralkernels.ops import load_operations
from spectralkernels.ops.band_limited_conv2d import band_limited_conv2d
from spectralkernels.sparse import SparseSpectrum

WAITS = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.equal",
    "aten.masked_select",
    "aten.unique",
)
"""Operators that wait for the device: their result is a number on the host, or has a size that the data decide."""
COPIES = ("aten.lift_fresh", "aten.lift_fresh_copy", "aten._pin_memory")
"""Operators that make a tensor of numbers on the host, and so a copy to the device at every call."""


class Watch(TorchDispatchMode):
    """The operators called inside, also by custom operators, and the storages that they made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.made: dict[int, int] = {}
        self.returned: set[int] = set()
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().replace("::", ".")
        if func.namespace == NAMESPACE:
            # An operator of ours is Python: watch what it calls.
            with self:
                return OPERATORS[name.partition(".")[2]].compute(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {storage(leaf) for leaf in given}
        if name.startswith("aten.index.") and any(leaf.dtype == torch.bool for leaf in given[1:]):
            # Indexing by a mask lists the mask's cells first.
            self.called.append("aten.nonzero")
        found = func(*args, **(kwargs or {}))
        self.called.append(name)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and storage(leaf) not in known and leaf.untyped_storage().nbytes():
                self._alive.append(leaf)
                self.made.setdefault(storage(leaf), leaf.untyped_storage().nbytes())
        return found


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.fixture
def no_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    jit = pytest.importorskip("triton.runtime.jit")
    monkeypatch.setattr(jit.JITFunction, "run", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(dispatch, "why_not", lambda *_: None)
    yield


def triton_points() -> list[Any]:
    return list(_triton_points())


def _triton_points() -> Iterator[Any]:
    for operation in load_operations().values():
        cases: dict[str, Case] = {case.id + case.dtype: case for case, _ in operation.cases("smoke")}
        for subject in operation.implementations:
            if subject.available is triton_unavailable:
                yield pytest.param(operation, subject, list(cases.values()), id=f"{operation.name}-{subject.name}")


def first_served(operation: Operation, subject: Implementation, cases: list[Case]) -> dict[str, Any]:
    """The prepared inputs of the first smoke case that the implementation takes."""
    reasons = set()
    for case in cases:
        inputs = operation.make_inputs(case, "cpu")
        prepared = subject.prepare(**inputs) if subject.prepare else inputs
        reason = subject.supports(**prepared)
        if reason is None:
            return prepared
        reasons.add(reason)
    pytest.skip("; ".join(reasons))


def watched(call: Callable[[], Any]) -> Watch:
    """What the second call does; the first one builds and caches matrices."""
    call()
    with Watch() as watch:
        watch.returned = {storage(tensor) for tensor in tensors(call())}
    return watch


def tensors(found: Any) -> list[Tensor]:
    """Every tensor of a result."""
    if isinstance(found, SparseSpectrum):
        return [found.values, *found.index]
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def faults(watch: Watch) -> list[str]:
    return [name for name in watch.called if name.startswith((*WAITS, *COPIES))]


@pytest.mark.parametrize(("operation", "subject", "cases"), triton_points())
def test_a_call_can_be_captured_and_needs_one_workspace(
    operation: Operation, subject: Implementation, cases: list[Case], no_launches: None
):
    prepared = first_served(operation, subject, cases)
    with torch.no_grad():
        watch = watched(lambda: subject.call(**prepared))
    assert not faults(watch), watch.called
    if "torch.fft" not in subject.source:
        # What a forward pass keeps for its backward pass is an output of the operator: it is dropped here.
        kept = KEPT.get(subject.name, KEPT.get(subject.name.split("_triton")[0] + "_triton", 0))
        assert len(watch.made.keys() - watch.returned) <= 1 + kept, watch.called


KEPT = {"dft_triton": 1, "dft_triton_save_spectrum": 2}
"""Tensors that an operator returns for its backward pass also where there is none."""


@pytest.mark.parametrize(("operation", "subject", "cases"), triton_points())
def test_a_training_step_can_be_captured(
    operation: Operation, subject: Implementation, cases: list[Case], no_launches: None
):
    prepared = first_served(operation, subject, cases)
    names = [name for name in operation.gradients if subject.gradients is None or name in subject.gradients]
    leaves = {
        name: prepared[name].detach().requires_grad_() for name in names if isinstance(prepared.get(name), Tensor)
    }
    if not leaves:
        pytest.skip("it differentiates none of its inputs")

    def step() -> list[Tensor]:
        output = operation.dense(subject.call(**{**prepared, **leaves}))
        return list(torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output)))

    assert not faults(watched(step))


def test_what_happens_within_an_operator_is_seen(seed: int):
    x, weight = torch.randn(1, 2, 7, 6), torch.randn(3, 2, 3, 3)
    with torch.no_grad():
        watch = watched(lambda: band_limited_conv2d(x, weight, compression=0.5, impl="dft_gemm"))
    assert "aten.bmm.out" in watch.called and not any(name.startswith(NAMESPACE) for name in watch.called)


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x[x > 0],
        lambda x: x * float(x.sum()),
        lambda x: x * torch.tensor([2.0]),
        lambda x: x if (x > 0).any() else -x,
    ],
    ids=["selects", "reads a number", "copies a number", "branches"],
)
def test_what_a_graph_cannot_hold_is_seen(planted: Callable[[Tensor], Tensor]):
    assert faults(watched(lambda: planted(torch.ones(3))))


def test_a_second_workspace_is_seen():
    watch = watched(lambda: (torch.empty(3).add_(torch.empty(3)) + torch.empty(5)[:3]).clone())
    assert len(watch.made.keys() - watch.returned) == 4
