"""The cases of masked convolution: every kind of mask at a rate, their inputs and their floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralkernels import masks
from spectralkernels.convolution.cost import conv_cost
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.declare import Block, Case, Cost, Scalar
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.masks.modes import mode_list
from spectralkernels.spectra import Band, half

# rectangular, radial, scattered: share of cells dropped. energy_*: share of energy dropped. soft_window: share of cells
# outside the window, ramp included. frequency_dropout: one band per sample, at least a share 1 - rate of the cells.
# cell_dropout: probability to drop a cell. weights: a random weight in (0, 1) for every cell, nothing dropped.
KINDS = (
    "rectangular",
    "energy_code",
    "energy_parseval",
    "radial",
    "soft_window",
    "frequency_dropout",
    "cell_dropout",
    "scattered",
    "weights",
)


def band_of(case: Case) -> Band:
    """The geometry of a case, without a band limit."""
    size, kernel = (case["height"], case["width"]), (case["kernel_size"],) * 2
    return conv_band(size, kernel, compression=0.0, grid=case["grid"])


def make_mask(kind: str, rate: float, n: tuple[int, int], samples: int, seed: int, x: Tensor | None = None) -> Tensor:
    """A Hermitian mask of one of `KINDS`, a function of its arguments alone; the energy kinds need the maps."""
    generator = torch.Generator().manual_seed(seed + 2)
    if kind == "rectangular":
        return masks.rectangular(n, rate)
    if kind in ("energy_code", "energy_parseval"):
        assert x is not None
        return masks.energy(x.double(), n, 1.0 - rate, mode="code" if kind == "energy_code" else "parseval")
    if kind == "radial":
        return masks.radial(n, 1.0 - rate)
    if kind == "soft_window":
        return _window(n, rate)
    if kind == "frequency_dropout":
        return masks.frequency_dropout(n, math.sqrt(1.0 - rate), samples=samples, generator=generator)
    if kind == "cell_dropout":
        return masks.cell_dropout(n, rate, generator=generator)
    cells = torch.rand(n[0], half(n[1]), generator=generator)
    if kind == "scattered":
        return masks.hermitian(cells >= rate, n)
    if kind == "weights":
        return masks.hermitian(cells, n)
    raise RangeError(f"unknown mask kind {kind!r}; known: {', '.join(KINDS)}")


def _window(n: tuple[int, int], rate: float) -> Tensor:
    """The window R + N / (2 S) = sqrt(1 - rate) (N // 2 + 1) wide, with a ramp of 4 indices or half its width."""
    reach = [math.sqrt(1.0 - rate) * half(size) for size in n]
    smoothness = min(4.0, min(reach) / 2.0)
    strides = [size / (2.0 * (far - smoothness)) for size, far in zip(n, reach, strict=True)]
    return masks.soft_window(n, torch.tensor(strides), smoothness)


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    """The keywords of every implementation."""
    band, dtype = band_of(case), getattr(torch, case.dtype)
    x = _maps(case)
    shape = (case["out_channels"], case["in_channels"], case["kernel_size"], case["kernel_size"])
    n = (band.n[0], band.n[1])
    mask = make_mask(case["mask"], case["rate"], n, case["batch"], case.seed, x)
    tensors = {"x": x.to(dtype), "weight": he_kernel(shape, case.seed).to(dtype), "mask": mask}
    return {
        **{name: tensor.to(device) for name, tensor in tensors.items()},
        "bias": None,
        "band": band,
        "modes": mode_list(mask, n),
        "groups": 1,
    }


def _maps(case: Case) -> Tensor:
    shape = (case["batch"], case["in_channels"], case["height"], case["width"])
    return feature_map(case["input"], shape, case.seed)


def cost(case: Case) -> Cost:
    """Tensors and mask cross memory once; FLOPs for the kept modes (an energy mask keeps at least one)."""
    band = band_of(case)
    n = (band.n[0], band.n[1])
    modes = 1
    if not case["mask"].startswith("energy"):
        modes = int((make_mask(case["mask"], case["rate"], n, 1, case.seed) != 0).sum())
    # A square band of at most as many modes bounds the transforms from below.
    side = max(1, math.isqrt(modes // 2))
    narrow = replace(band, kept=(min(side, half(n[0])), min(side, half(n[1]))), compression=case["rate"])
    batch, channels, out_channels = case["batch"], case["in_channels"], case["out_channels"]
    floor = conv_cost(batch, channels, out_channels, 1, narrow, getattr(torch, case.dtype).itemsize)
    return replace(floor, bytes_read=floor.bytes_read + n[0] * half(n[1]))


def observe(case: Case, output: Tensor) -> Mapping[str, float]:
    """The share of half-spectrum cells with a weight above zero, in the mean over the batch."""
    n = band_of(case).n
    mask = make_mask(case["mask"], case["rate"], (n[0], n[1]), case["batch"], case.seed, _maps(case))
    kept = float((mask != 0).double().mean())
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


_Axes = dict[str, tuple[Scalar, ...]]

_SHAPE: _Axes = {
    "batch": (8,),
    "in_channels": (64,),
    "out_channels": (64,),
    "height": (32,),
    "width": (32,),
    "kernel_size": (7,),
    "mask": ("radial",),
    "rate": (0.5,),
    "grid": ("tight",),
    "input": ("photo",),
}
_SMALL: _Axes = {**_SHAPE, "batch": (4,), "in_channels": (32,), "out_channels": (32,)}
_TINY: _Axes = {
    **_SHAPE,
    "batch": (2,),
    "in_channels": (3,),
    "out_channels": (4,),
    "height": (9,),
    "width": (7,),
    "kernel_size": (3,),
    "input": ("white",),
}
_TINIER: _Axes = {"height": (5,), "width": (4,)}
_BANDS = ("rectangular", "radial", "soft_window")
_SPECTRAL = ("dft_gemm", "dft_gemm_frozen", "torch_fft", "direct_uncompressed")

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block({**_TINY, "mask": KINDS, "kernel_size": (3, 4)}, passes=("forward", "both")),
        Block({**_TINY, **_TINIER, "mask": ("radial",), "rate": (0.0, 0.95), "grid": ("seed", "pow2", "fast")}),
        Block({**_TINY, "mask": ("soft_window", "scattered")}, dtypes=("float64",), passes=("forward", "both")),
    ),
    "quick": (
        Block({**_SMALL, "mask": ("radial", "soft_window"), "kernel_size": (7, 15)}, implementations=_SPECTRAL),
        Block({**_SMALL, "mask": ("energy_parseval",), "rate": (0.05,)}, implementations=_SPECTRAL),
        Block({**_SMALL, "mask": ("frequency_dropout",)}, implementations=_SPECTRAL),
        Block({**_SMALL, "mask": ("scattered",), "rate": (0.9,)}, implementations=_SPECTRAL),
    ),
    "study": (
        Block(
            {**_SHAPE, "mask": _BANDS, "kernel_size": (3, 7, 15), "rate": (0.25, 0.5, 0.75, 0.95)},
            implementations=_SPECTRAL,
        ),
        Block({**_SHAPE, "mask": _BANDS, "kernel_size": (3, 7, 15)}, passes=("both",), implementations=_SPECTRAL),
        Block(
            {**_SHAPE, "mask": ("energy_code", "energy_parseval"), "rate": (0.01, 0.05, 0.1, 0.2)},
            implementations=_SPECTRAL,
        ),
        Block(
            {**_SHAPE, "mask": ("frequency_dropout", "cell_dropout", "scattered"), "rate": (0.5, 0.9)},
            implementations=_SPECTRAL,
        ),
    ),
    "claims": (
        Block({**_SHAPE, "mask": _BANDS, "kernel_size": (3, 7, 15, 31)}, implementations=_SPECTRAL),
        Block({**_SHAPE, "mask": _BANDS, "kernel_size": (3, 7, 15, 31)}, passes=("both",), implementations=_SPECTRAL),
    ),
    "gpu": (
        Block(
            {**_SHAPE, "batch": (128,), "mask": _BANDS, "kernel_size": (3, 7, 15), "rate": (0.5, 0.8)},
            passes=("forward", "both"),
        ),
        Block({**_SHAPE, "batch": (32,), "height": (56,), "width": (56,), "mask": _BANDS}, passes=("forward", "both")),
        Block(
            {**_SHAPE, "batch": (128,), "mask": ("energy_parseval", "cell_dropout", "scattered"), "rate": (0.1, 0.9)}
        ),
    ),
    "asv": (
        Block(
            {**_SMALL, "mask": ("radial", "soft_window"), "kernel_size": (7, 15)},
            implementations=(*_SPECTRAL, "dft_triton"),
        ),
    ),
}
