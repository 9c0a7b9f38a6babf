"""`optimise` says what auto looks for where one implementation is faster and another one keeps less."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import spectralkernels as sk
from spectralkernels.ops import load_operations


def saved_bytes(call: Callable[[], Any]) -> int:
    """Bytes of the distinct storages that autograd keeps."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = call()
    assert kept is not None
    return sum(storages.values())


def spectrum(*shape: int) -> torch.Tensor:
    return torch.fft.rfft2(torch.randn(shape), norm="ortho")


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 99.0])
def test_a_threshold_for_memory_holds_and_saves_what_is_kept(beta: float, seed: int):
    """8 bytes per kept value, a bit per coefficient, 4 bytes per block of 1024: nothing else, in either pass."""
    y = spectrum(4, 3, 16, 15).requires_grad_()
    blocks = -(-y.numel() // 1024)
    small = sk.threshold_spectrum(y, beta, n=15)
    used = 8 * small.nnz + blocks * (128 + 4)
    assert small.nbytes == small.allocated_nbytes == used
    assert saved_bytes(lambda: sk.threshold_spectrum(y, beta, n=15)) <= used
    fast = sk.threshold_spectrum(y, beta, n=15, optimise="time")
    assert fast.format == "dense" and torch.equal(fast.to_dense(), small.to_dense())
    grads = [torch.autograd.grad(z.to_dense().abs().square().sum(), y)[0] for z in (small, fast)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (1, 0, 5, 4), (1, 1, 1, 1), (2, 1, 31, 33)])
def test_both_aims_answer_alike_on_any_shape(shape: tuple[int, ...], seed: int):
    y = spectrum(*shape) if 0 not in shape else torch.zeros(*shape, dtype=torch.complex64)
    found = [sk.threshold_spectrum(y, 0.7, optimise=aim) for aim in ("memory", "time")]
    assert torch.equal(*(each.to_dense() for each in found)) and found[0].nnz == found[1].nnz


def test_a_block_saves_less_for_memory(seed: int):
    x, weight = torch.randn(2, 3, 12, 11), torch.randn(4, 3, 3, 3, requires_grad=True)
    calls = [lambda aim=aim: sk.spec_block(x, weight, 1.0, optimise=aim) for aim in ("memory", "time")]
    small, fast = (call() for call in calls)
    assert (small.format, fast.format) == ("bitmap", "dense")
    torch.testing.assert_close(small.to_dense(), fast.to_dense())
    assert 2 * saved_bytes(calls[0]) < saved_bytes(calls[1])
    layer = sk.nn.SpecBlock(3, 4, 3, beta=1.0, optimise="time")
    assert layer(x).format == "dense"


@pytest.mark.parametrize("format", ["coo", "csr", "index"])
@pytest.mark.parametrize(("beta", "outputs"), [(0.0, 1), (1.5, 1), (1.5, 24), (4.0, 24)])
def test_a_product_takes_the_smaller_way_or_the_faster_one(format: str, beta: float, outputs: int, seed: int):
    sparse = sk.threshold_spectrum(spectrum(3, 4, 9, 8), beta, activation=None, impl=format)
    w_hat = torch.randn(outputs, 4, 9, 5, dtype=torch.complex64, requires_grad=True)
    ways = {
        impl: saved_bytes(lambda impl=impl: sk.sparse_multiply(sparse, w_hat, impl=impl)) for impl in (format, "dense")
    }
    by_memory = sk.explain(sk.sparse_multiply, sparse, w_hat, optimise="memory")
    # within the index of another format: coo is read as two, csr and index are
    assert ways[by_memory.chosen] <= min(ways.values()) + 16 * sparse.nnz
    by_time = sk.explain(sk.sparse_multiply, sparse, w_hat, optimise="time")
    assert by_time.chosen == ("dense" if 3 * sparse.nnz > sparse.numel else format)
    assert by_time == sk.explain(sk.sparse_multiply, sparse, w_hat)
    answers = [sk.sparse_multiply(sparse, w_hat, optimise=aim) for aim in ("time", "memory")]
    torch.testing.assert_close(*answers)


def test_the_explanation_says_which_aim_was_followed():
    y, x, weight = spectrum(1, 2, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    for call, small in (
        ((sk.threshold_spectrum, y, 1.0), "bitmap_compact"),
        ((sk.spec_block, x, weight, 1.0), "bitmap"),
    ):
        found = {aim: sk.explain(*call, optimise=aim) for aim in ("memory", "time")}
        assert (found["memory"].chosen, found["time"].chosen) == (small, "dense")
        assert "memory" in found["memory"].because and "time" in found["time"].because
        assert found["memory"] == sk.explain(*call)


def test_declared_aims_are_what_auto_takes():
    """The default of each function is the first aim that its operation declares."""
    for name, operation in load_operations().items():
        function = getattr(sk, name, None)
        default = (function.__kwdefaults__ or {}).get("optimise") if function else None
        assert default == (operation.aims[0] if operation.aims else None), name


@pytest.mark.parametrize("aim", ["speed", "", None, 1, "Time", ("time",)])
def test_other_aims_are_refused(aim: Any):
    got = repr(aim) if isinstance(aim, str) else ""
    for call in (
        lambda: sk.threshold_spectrum(spectrum(1, 1, 4, 4), 1.0, optimise=aim),
        lambda: sk.spec_block(torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3), 1.0, optimise=aim),
        lambda: sk.nn.SpecBlock(1, 1, 3, beta=1.0, optimise=aim),
    ):
        with pytest.raises(sk.RangeError, match=re.escape(f"optimise must be 'time' or 'memory', got {got}")):
            call()
