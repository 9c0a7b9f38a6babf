"""The cases of the SpecNet block: first blocks on images, later ones on packed maps; inputs, floor, facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectralkernels.declare import Block, Case, Cost
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.ops.spec_block.baselines import block_spectrum
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.sparse.inputs import convolved_spectrum, grid
from spectralkernels.spectra import half, hermitian_weights

STORAGE: Mapping[str, float | None] = {"exact": None, "half": 0.5, "full": 1.0}
"""The values of axis `storage` as capacities: what is kept, half of all coefficients, or all."""

GAP = 0.01  # beta moves by at most this share of itself, to lie as far as possible from every magnitude


def fft_size(case: Case) -> tuple[int, ...]:
    """An image is padded for this block's kernel, a packed map was padded for the 3x3 one of the block before."""
    if case["map"] == "sparse":
        return grid(case["height"], case["width"])
    return tuple(case[name] + case["kernel_size"] - 1 for name in ("height", "width"))


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    """An image or the packed map of a block before, the spatial kernel, and beta within 1 % of the case's.

    beta is put into the widest gap there between magnitudes: a coefficient so near that rounding decides it would
    outweigh every rounding error.
    """
    real = torch.float64 if case.dtype == "float64" else torch.float32
    shape = (case["batch"], case["in_channels"], case["height"], case["width"])
    rows, n = fft_size(case)
    words = offsets = None
    if case["map"] == "sparse":
        y_hat = convolved_spectrum(case["input"], shape, case.seed).to(device, real.to_complex())
        before = threshold_spectrum(y_hat, case["beta"], relative=case["relative"], n=n, impl="bitmap").compact()
        values, (words, offsets) = before.values, before.index
    else:
        values = feature_map(case["input"], shape, case.seed).to(device, real)
    kernel = (case["out_channels"], case["in_channels"], case["kernel_size"], case["kernel_size"])
    inputs: dict[str, Any] = {
        "values": values,
        "words": words,
        "offsets": offsets,
        "weight": he_kernel(kernel, case.seed + 1).to(device, real),
        "shape": (*shape[:2], rows, half(n)),
        "n": n,
    }
    y_hat = block_spectrum(**inputs)
    return {
        **inputs,
        "beta": _in_a_gap(case["beta"], y_hat, n, case["relative"]),
        "activation": "tanh",
        "relative": case["relative"],
        "capacity": STORAGE[case["storage"]],
    }


def cost(case: Case) -> Cost:
    """Floor of a forward pass; what depends on the kept fraction, which the data decide, is left out.

    With F = U * V: an image (4 B C H W bytes) or a packed map's bits (F B C / 8) and the kernel (4 O C K^2) are read,
    the new map's bits (F B O / 8) written. Products: 8 F B C O flops for an image, one per output for a packed map.
    """
    scale = 2 if case.dtype == "float64" else 1
    rows, n = fft_size(case)
    batch, channels, outputs, f = case["batch"], case["in_channels"], case["out_channels"], rows * half(n)
    image = case["map"] == "image"
    plane = 4 * scale * case["height"] * case["width"]
    read = (
        batch * channels * (plane if image else f // 8 + 1) + 4 * scale * outputs * channels * case["kernel_size"] ** 2
    )
    return Cost(read, max(1, f * batch * outputs // 8), 8 * f * batch * outputs * (channels if image else 1))


def observe(case: Case, output: SparseSpectrum) -> Mapping[str, float]:
    return {"kept_fraction": output.density, "stored_bytes": float(output.nbytes)}


def _in_a_gap(beta: float, y_hat: Tensor, n: int, relative: bool) -> float:
    """The middle of the widest gap between magnitudes (over the map's rms if relative) within 1 % of beta."""
    sizes = y_hat.abs()
    if relative:
        weights = hermitian_weights(n, y_hat.shape[-1]).to(y_hat.device)
        power = (sizes.square() * weights).sum((-2, -1), keepdim=True) / (y_hat.shape[-2] * n)
        sizes = sizes / power.sqrt()
    low, high = beta * (1.0 - GAP), beta * (1.0 + GAP)
    near = sizes[(sizes > low) & (sizes < high)].sort().values
    edges = torch.cat([near.new_tensor([low]), near, near.new_tensor([high])])
    widest = int(edges.diff().argmax())
    return float(edges[widest : widest + 2].mean())


def _axes(beta: tuple[float, ...], **others: Any) -> dict[str, tuple[Any, ...]]:
    """Axes in declared order, of the middle-sized later block unless given."""
    axes = {
        "batch": 8,
        "in_channels": 16,
        "out_channels": 16,
        "height": 32,
        "width": 32,
        "kernel_size": 3,
        "beta": beta,
        "relative": False,
        "input": "pink",
        "map": "sparse",
        "storage": "exact",
    }
    return {name: value if isinstance(value, tuple) else (value,) for name, value in (axes | others).items()}


_SMALL = {"batch": 4, "in_channels": 3, "out_channels": 8, "input": "white"}
_LARGE = {"batch": 128, "in_channels": 64, "out_channels": 64}
_SMALL_MAPS = {"batch": 128, "in_channels": 256, "out_channels": 256, "height": 8, "width": 8}

PROFILES: Mapping[str, tuple[Block, ...]] = {
    "smoke": (
        Block(
            _axes((1.25,), **_SMALL, height=(6, 9), width=(7, 8), relative=True, storage="half"),
            passes=("forward", "both"),
        ),
        Block(
            _axes((0.5,), **_SMALL, height=5, width=(6, 7), kernel_size=(2, 3), map="image"),
            dtypes=("float32", "float64"),
            passes=("forward", "both"),
        ),
    ),
    "quick": (
        Block(_axes((0.5, 1.0), input=("pink", "photo"))),
        Block(_axes((1.0,)), passes=("both",)),
        Block(_axes((1.0,), map="image", in_channels=3)),
    ),
    "study": (
        Block(_axes((0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), input=("pink", "photo"))),
        Block(_axes((0.5, 1.0, 1.5)), passes=("both",)),
        Block(_axes((0.5, 1.0, 1.5), map="image", in_channels=3), passes=("forward", "both")),
        Block(_axes((0.5, 1.0, 1.5), relative=True, kernel_size=(3, 7))),
        Block(_axes((1.0,), in_channels=64, out_channels=64, height=(8, 16), width=16), passes=("forward", "both")),
    ),
    "gpu": (
        # A CUDA graph cannot hold the wait of exact storage.
        Block(_axes((1.0,), **_LARGE, storage="half"), passes=("forward", "both")),
        Block(_axes((1.0,), **_LARGE | {"in_channels": 3}, map="image", storage="half"), passes=("forward", "both")),
        Block(_axes((1.0,), **_SMALL_MAPS, storage="half"), passes=("forward", "both")),
        Block(_axes((0.5, 1.0, 1.5), **_LARGE), passes=("forward", "both")),
    ),
    "asv": (Block(_axes((0.5, 1.0, 1.5))),),
}
