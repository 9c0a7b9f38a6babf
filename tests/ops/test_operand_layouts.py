"""Every Triton kernel reads its operands as they are, wherever and in whichever order they lie in memory.

Each operator is called with all of its tensors in an unusual layout, surrounded by NaN, and again with plain copies of
the same numbers; both answers are equal bit for bit. That the plain answer is right is shown elsewhere.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from effort import EFFORT
from guarded_interpreter import in_poison, interpreter
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.dft_triton.layout import box_layout
from spectralkernels.convolution.fused.precision import PRECISIONS
from spectralkernels.convolution.fused_series.geometry import Digits, SeriesGeometry, Whole, chosen_form
from spectralkernels.launch import Launch, as_real_pairs, dense
from spectralkernels.operators import NAMESPACE
from spectralkernels.sparse import bitmap
from spectralkernels.tuning import pinned

triton = pytest.importorskip("triton")


def kernels() -> set[Any]:
    """The Python functions of every kernel of the library; looking for them registers every operator."""
    modules = [importlib.import_module(each.name) for each in pkgutil.walk_packages(sk.__path__, f"{sk.__name__}.")]
    named = [value for module in modules for name, value in vars(module).items() if name.endswith("_kernel")]
    return {value.fn for value in named if hasattr(value, "fn")}


KERNELS = kernels()

# --- layouts --------------------------------------------------------------------------------------------------------


def poison(tensor: Tensor, *shape: int) -> Tensor:
    """A buffer of NaN, of -1 where numbers are whole, for a tensor to lie in."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.full(shape, -1, dtype=tensor.dtype)
    return torch.full(shape, complex(float("nan"), float("nan")) if tensor.is_complex() else float("nan")).to(
        tensor.dtype
    )


def apart(tensor: Tensor) -> Tensor:
    """Axes backwards in memory, each twice as far apart as it need be."""
    order = list(range(tensor.dim()))[::-1]
    backwards = tensor.permute(order)
    wide = poison(tensor, *backwards.shape, 2)
    wide[..., 0] = backwards
    return wide[..., 0].permute(order)


def expanded(tensor: Tensor) -> Tensor:
    """The first numbers of the first and the last axis, seen along all of both; words and offsets keep theirs."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0 or tensor.dim() == 0:
        return tensor
    return in_poison(tensor.narrow(0, 0, 1).narrow(-1, 0, 1).contiguous()).expand_as(tensor)


def postponed(tensor: Tensor) -> Tensor:
    """The same numbers one element after an aligned address, where torch has yet to conjugate or to negate them."""
    kept = tensor.conj_physical() if tensor.is_complex() else -tensor if tensor.is_floating_point() else tensor
    buffer = poison(tensor, tensor.numel() + 9)
    buffer[1 : 1 + tensor.numel()] = kept.flatten()
    inside = buffer[1 : 1 + tensor.numel()].view(tensor.shape)
    if tensor.is_complex():
        return inside.conj()
    return torch._neg_view(inside) if tensor.is_floating_point() else inside


LAYOUTS = {"apart": apart, "expanded": expanded, "postponed": postponed}

# --- operators ------------------------------------------------------------------------------------------------------


def reals(*shape: int) -> Tensor:
    return torch.randn(shape)


def spectra(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64)


def fused_depthwise() -> tuple[Any, ...]:
    facts = ([-1, -1], [9, 8], [3, 3])
    y, z = torch.ops.spectralkernels.fused_plain(
        x := reals(2, 2, 8, 7), w := reals(2, 1, 3, 2), b := reals(2), *facts, [8, 7], "tf32x3", True
    )
    back = (*facts, [8, 7], "tf32x3")
    return (
        ("fused", (x, w, b, *facts, [8, 7], "tf32x3", True)),
        ("fused_backward", (y, z, w, *back, True, True, True, True)),
        ("fused_backward", (y, x, w, *back, False, True, True, False)),
    )


def fused_series(length: int, n: int, kept: int, form: type) -> tuple[Any, ...]:
    assert isinstance(chosen_form(SeriesGeometry(length, length, 3, -1, n, kept), PRECISIONS["tf32x3"]), form)
    facts = ([-1], [n], [kept], [length], "tf32x3")
    x, w, b = reals(2, 2, length), reals(2, 1, 3), reals(2)
    y, z = torch.ops.spectralkernels.fused_plain(x, w, b, *facts, True)
    return (
        ("fused", (x, w, b, *facts, True)),
        ("fused_backward", (y, z, w, *facts, True, True, True, True)),
        ("fused_backward", (y, x, w, *facts, False, True, True, False)),
    )


def dft_triton(
    size: tuple[int, int], n: tuple[int, int], kept: tuple[int, int], groups: int, precision: str = "tf32x3"
) -> tuple[Any, ...]:
    """Forward and backward with a mask, a gate and a gradient of everything, and with a frozen weight."""
    layout, channels, outputs = box_layout(n, kept), 4, 4
    x, w, b = reals(2, channels, *size), reals(outputs, channels // groups, 2, 3), reals(outputs)
    mask = torch.rand(n[0], n[1] // 2 + 1) if groups == 1 else torch.rand(2, 1, n[0], n[1] // 2 + 1)
    facts = ([0, -1], groups, layout)
    forward = (x, w, b, mask, *facts, list(size), precision, True, "class", "spectrum")
    y, z, modes = torch.ops.spectralkernels.dft_triton_conv_plain(*forward)
    dy = reals(*y.shape)
    frozen = (outputs, groups, layout, list(size), precision)
    back = (channels, groups, layout, list(size), precision)
    return (
        ("dft_triton_conv", forward),
        ("dft_triton_conv_backward", (dy, y, z, w, modes, mask, *facts, list(size), precision, [1, 1, 1, 1])),
        ("dft_triton_apply", (x, modes, b, *frozen, True)),
        ("dft_triton_apply_backward", (dy, y, modes, *back, True, True)),
    )


def shared_sums() -> Iterator[Any]:
    """As `dft_triton`, where two programs share a sum while these calls run."""
    with pinned({"dft_triton.contract": {"shares": 2}}):
        yield from dft_triton((3, 4), (4, 6), (1, 2), 1)


def implicit_gemm() -> tuple[Any, ...]:
    x, w = reals(2, 3, 7, 6), reals(3, 1, 3, 2)
    return (
        ("implicit_gemm", (x, w, reals(3), [1, 0], [7, 6])),
        ("implicit_gemm_weight_gradient", (reals(2, 3, 7, 6), x, [1, 0], [3, 2])),
    )


def masked_multiply(name: str, channels: int, *plane: int) -> tuple[Any, ...]:
    x, w = spectra(3, 2 * channels, *plane), spectra(6, channels, *plane)
    return tuple(
        (f"masked_multiply_{name}", (x, w, mask, 2, conjugate))
        for mask, conjugate in ((None, True), (torch.rand(plane), False), (torch.rand(plane) < 0.5, True))
    )


def threshold() -> tuple[Any, ...]:

    y, rms = spectra(2, 3, 20, 11), torch.rand(6)
    values, words = torch.ops.spectralkernels.threshold_bitmap_plain(y, torch.tensor(0.8), None, True, 20)
    return (
        ("threshold_bitmap", (y, torch.tensor(0.8), rms, True, 20)),
        ("map_rms", (y, 20)),
        ("threshold_backward", (spectra(len(values)), values.nan_to_num(), words, y.numel())),
    )


def sparse() -> tuple[Any, ...]:
    """A full and a compact bitmap: unpacked, packed, multiplied over channels and over the batch."""

    shape, numel = (3, 9, 6, 8), 3 * 9 * 6 * 8
    bits = torch.rand(bitmap.blocks_of(numel), bitmap.BLOCK) < 0.4
    words, counts = bitmap.pack_bits(bits), bits.sum(1)
    offsets = (counts.cumsum(0) - counts).to(torch.int32)
    full, compact = spectra(bits.numel()), spectra(int(counts.sum()))
    w, dz, flat = spectra(4, *shape[1:]), spectra(3, 4, *shape[2:]), spectra(numel)
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for values, at in ((full, None), (compact, offsets)):
        calls += [
            ("bitmap_expand", (values, words, at, numel)),
            ("bitmap_collect", (flat, words, at, len(values))),
            ("sparse_multiply_bitmap", (values, words, at, w, list(shape), False)),
            ("sparse_multiply_bitmap", (values, words, at, dz, list(shape), True)),
        ]
    return tuple(calls)


def spec_block() -> tuple[Any, ...]:
    """A packed map with room for some values less than it has slots, so that blocks move together."""
    shape = [2, 2, 24, 13]
    values, words = torch.ops.spectralkernels.threshold_bitmap_plain(spectra(*shape), torch.tensor(0.8), None, True, 24)
    block = (spectra(3, 2, 24, 13), shape, 24, torch.tensor(2.0), True, False, None, "triton")
    return (
        ("spec_block", (values.nan_to_num(), words, None, *block)),
        ("spec_block", (reals(2, 2, 23, 22), None, None, *block)),
    )


def resampling() -> tuple[Any, ...]:
    """Without a window, under a share and under strides; there and back."""
    x, y, strides = reals(2, 2, 8, 7), reals(2, 2, 5, 4), 1.5 + torch.rand(2)
    return (
        ("resample", (x, None, [5, 4], "average", 0.7, 0.0, 1.0, False, "tf32x3")),
        ("resample", (x, torch.rand(1), [5, 4], "code", None, 0.0, 2.0, False, "tf32x3")),
        ("resample", (y, strides, [8, 7], "drop", None, 1.5, 1.0, True, "tf32x3")),
        ("resample_window_gradient", (x, y, strides, "drop", 1.5, 1.0, "tf32x3")),
    )


FAMILIES: tuple[Callable[[], Iterable[Any]], ...] = (
    fused_depthwise,
    lambda: fused_series(19, 20, 7, Whole),
    lambda: fused_series(270, 272, 20, Digits),
    # One matrix, two matrices, by quadrants and whole, groups of one channel.
    lambda: dft_triton((3, 4), (4, 6), (1, 2), 2),
    lambda: dft_triton((17, 16), (18, 18), (1, 2), 1),
    lambda: dft_triton((17, 16), (18, 18), (1, 2), 1, "fp16"),
    lambda: dft_triton((3, 4), (4, 6), (1, 2), 4),
    shared_sums,
    implicit_gemm,
    resampling,
    # Cells as they lie, and looked up.
    lambda: masked_multiply("triton", 2, 5, 4),
    lambda: masked_multiply("triton", 32, 9, 15),
    lambda: masked_multiply("triton_2019", 2, 5, 4),
    lambda: masked_multiply("triton_tf32x3", 2, 5, 4),
    threshold,
    sparse,
    spec_block,
)


@pytest.fixture
def zeros_where_undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a bitmap that are not used are undefined: they compare equal where all memory begins as zeros."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keywords: empty(*size, **keywords).zero_())


@pytest.mark.slow
@interpreter
def test_operands_of_every_kernel_may_lie_anywhere(
    seed: int, zeros_where_undefined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layout, of which a short run draws one for each call."""
    launched, original, draw = set(), Launch.run, random.Random(seed)
    monkeypatch.setattr(Launch, "run", lambda launch: launched.add(launch.kernel.fn) or original(launch))
    for name, arguments in (call for family in FAMILIES for call in family()):
        answer = run(name, arguments)
        assert not any(each.isnan().any() for each in answer), name
        for layout in LAYOUTS if EFFORT > 1 else [draw.choice(list(LAYOUTS))]:
            place = LAYOUTS[layout]
            placed = [place(each) if isinstance(each, Tensor) else each for each in arguments]
            plain = [dense(each) if isinstance(each, Tensor) else each for each in placed]
            # Only expanding changes the numbers.
            wanted = run(name, plain) if layout == "expanded" else answer
            assert all(map(torch.equal, run(name, placed), wanted)), (name, layout)
    assert launched == KERNELS, "a kernel of the library that no call reaches"


def run(name: str, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    found = getattr(getattr(torch.ops, NAMESPACE), f"{name}_plain")(*arguments)
    return found if isinstance(found, tuple) else (found,)


@interpreter
@pytest.mark.parametrize("layout", ["apart", "postponed"])
def test_a_launch_refuses_an_operand_that_its_kernel_would_misread(layout: str, seed: int) -> None:
    """Planted fault: an operator that forgets to make one dense."""
    from spectralkernels.ops.threshold_spectrum.rms import LEAST, rms_kernel

    def launch(y: Tensor) -> None:
        sizes = {"SIZE": 12, "COLUMNS": 4, "EVEN": True, "CELLS": 18, "LEAST": LEAST, "BLOCK": 16, "AGAIN": 16}
        Launch(rms_kernel, (2,), {"y_ptr": y, "rms_ptr": torch.empty(2), **sizes}, {}).run()

    y = reals(2, 3, 8)
    launch(as_real_pairs(torch.view_as_complex(y.view(2, 3, 4, 2))).view(torch.int64))
    with pytest.raises(AssertionError, match=r"y_ptr is (not contiguous|yet to be negated); pass launch\.dense of it"):
        launch(LAYOUTS[layout](y))


def test_dense_copies_nothing_that_is_dense(seed: int) -> None:
    for tensor in (reals(3, 4), spectra(3, 4), torch.arange(6, dtype=torch.int32)):
        assert dense(tensor) is tensor
        for place in LAYOUTS.values():
            made = dense(placed := place(tensor))
            assert torch.equal(made, placed) and made.is_contiguous() and not (made.is_conj() or made.is_neg())
