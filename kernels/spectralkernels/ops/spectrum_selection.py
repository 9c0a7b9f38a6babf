"""Convolution under an arbitrary selection of coefficients: what is lost by dropping the high ones, or the small ones.

    y = crop( F^-1( (M_x . X) . conj(M_w . W) ) ),     one 0/1 mask per half-spectrum cell and channel, for x and for w

Two selections at equal numbers of dropped cells (Dziedzic et al. 2019, section 6.2.10 and Fig. 24):

    lead   whole high-frequency rows and columns, the same in every channel, as `band_limited_conv2d` drops them
    top    the cells of smallest magnitude of the whole tensor, wherever they are; sizes do not shrink, so a time of
           `top` is no speed-up

The paper reports that `top` loses less at 6.6 % dropped. It need not at high rates: a cell survives only if image and
kernel both keep it, and the large cells of the two need not coincide. The curve of both is the experiment. The masks
are inputs, chosen once in float64, so that rounding cannot choose other cells in other implementations. Cells of the
self-conjugate columns are dropped in conjugate pairs, whose magnitudes are equal. Floor: x, w and the masks in, y out,
three FFTs and 8 B C O F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.checks import as_number, check_choice, check_compression
from spectralkernels.convolution.direct import direct
from spectralkernels.convolution.geometry import GridChoice, Padding, check_arguments, compute_dtype, conv_band
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.layouts import as_given, batched
from spectralkernels.spectra import Band, half, low_pass_mask

Selection = Literal["lead", "top"]


def spectrum_selection(
    x: Tensor,
    weight: Tensor,
    *,
    compression: float,
    selection: Selection = "lead",
    padding: Padding = "same",
    grid: GridChoice = "tight",
    impl: str = "auto",
) -> Tensor:
    """Convolve maps after dropping the same share of coefficients from the maps and from the kernels.

    x: Real [batch, channel, height, width], or one sample of it; half types are computed in float32.
    weight: Real [out_channel, channel, kernel_height, kernel_width].
    compression: fraction of coefficients to drop, 0 <= c < 1. selection: "lead" drops the high ones; "top" the smallest
        of the whole tensor, so that a sample's answer depends on its batch mates. Chosen in float64 and held fast.
    padding, grid: as in `band_limited_conv2d`.
    Returns: Real [batch, out_channel, out_height, out_width], dtype of x. Differentiable in x and weight.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_choice("selection", selection, ("lead", "top"))
    check_arguments(x, weight, None, 1, 1, "height, width")
    compression = as_number("compression", compression)
    check_compression(compression)
    band = conv_band(tuple(x.shape[2:]), tuple(weight.shape[2:]), compression=0.0, padding=padding, grid=grid)
    inputs = {"x": x, "weight": weight, **_masks(x, weight, band, selection, compression), "band": band}
    return as_given(dispatch(OPERATION, impl, x.device.type, inputs), given, x)


def _masks(x: Tensor, weight: Tensor, band: Band, selection: str, compression: float) -> dict[str, Tensor]:
    """x_mask: Bool [batch, channel, N_h, N_w // 2 + 1]. w_mask: Bool [out_channel, channel, N_h, N_w // 2 + 1]."""
    n = (band.n[0], band.n[1])
    masks = {}
    for name, transform, maps in (("x_mask", _spectrum, x), ("w_mask", _kernel_spectrum, weight)):
        # An FFT library refuses an empty batch.
        empty = maps.new_zeros(*maps.shape[:2], n[0], half(n[1]), dtype=torch.float64)
        magnitude = transform(maps.detach().double(), band).abs() if maps.numel() else empty
        masks[name] = select(magnitude, selection, compression, n)
    return masks


# --- implementations ------------------------------------------------------------------------------------------------


def _torch_fft(x: Tensor, weight: Tensor, x_mask: Tensor, w_mask: Tensor, band: Band) -> Tensor:
    if x.shape[0] == 0:  # an FFT library refuses an empty batch; the answer is as empty by any route
        return direct(x, weight, None, band, 1)
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        x_hat = _spectrum(x.to(dtype), band) * x_mask
        w_hat = _kernel_spectrum(weight.to(dtype), band) * w_mask
        return _inverse(torch.einsum("bcuv,ocuv->bouv", x_hat, w_hat.conj()), band).to(x.dtype)


def _spectrum(x: Tensor, band: Band) -> Tensor:
    flat = [zeros for before, _ in reversed(band.pad) for zeros in (before, 0)]
    return torch.fft.rfft2(torch.nn.functional.pad(x, flat), s=band.n)


def _kernel_spectrum(weight: Tensor, band: Band) -> Tensor:
    """Taps beyond a turn of the circle add up."""
    for axis, n in enumerate(band.n, start=2):
        turns = -(-weight.shape[axis] // n)
        flat = [0, 0] * (3 - axis) + [0, turns * n - weight.shape[axis]]
        weight = torch.nn.functional.pad(weight, flat).unflatten(axis, (turns, n)).sum(axis)
    return torch.fft.rfft2(weight)


def _inverse(y_hat: Tensor, band: Band) -> Tensor:
    return torch.fft.irfft2(y_hat, s=band.n)[..., : band.out[0], : band.out[1]].contiguous()


def select(magnitude: Tensor, selection: str, compression: float, n: tuple[int, int]) -> Tensor:
    """The cells to keep: Bool of the shape of `magnitude`, Float64 [..., N_h, N_w // 2 + 1].

    lead: the band of `spectra.low_pass_mask`. top: all but the floor(compression * cells) smallest cells; a conjugate
    pair of a self-conjugate column is kept whole if either of its cells is.
    """
    if selection == "lead":
        return low_pass_mask(n, compression, magnitude.device).expand_as(magnitude)
    if selection != "top":
        raise RangeError(f"unknown selection {selection!r}; known: lead, top")
    dropped = int(compression * magnitude.numel())
    keep = torch.ones(magnitude.numel(), dtype=torch.bool, device=magnitude.device)
    keep[magnitude.flatten().argsort(stable=True)[:dropped]] = False
    keep = keep.view_as(magnitude)
    mirror = torch.arange(0, -n[0], -1, device=keep.device).remainder(n[0])
    for column in (0, half(n[1]) - 1) if n[1] % 2 == 0 else (0,):
        keep[..., column].logical_or_(keep[..., mirror, column])
    return keep


# --- declaration ----------------------------------------------------------------------------------------------------


def _band_of(case: Case) -> Band:
    kernel, size = (case["kernel_size"],) * 2, (case["height"], case["width"])
    return conv_band(size, kernel, padding="valid", compression=0.0, grid=case["grid"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    band, dtype = _band_of(case), getattr(torch, case.dtype)
    x = feature_map(case["input"], (case["batch"], case["channels"], case["height"], case["width"]), case.seed).double()
    weight = he_kernel((case["out_channels"], case["channels"], *band.kernel), case.seed).double()
    masks = _masks(x, weight, band, case["selection"], case["compression"])
    tensors = {"x": x.to(dtype), "weight": weight.to(dtype), **masks}
    return {**{name: tensor.to(device) for name, tensor in tensors.items()}, "band": band}


def _reference(x: Tensor, weight: Tensor, x_mask: Tensor, w_mask: Tensor, band: Band) -> Tensor:
    """The operation in float64 on full complex spectra, the masks extended to every frequency."""
    placed = x.new_zeros(*x.shape[:2], *band.n, dtype=torch.float64)
    placed[..., : band.size[0], : band.size[1]] = x
    x_hat = torch.fft.fft2(placed) * _full(x_mask, band)
    w_hat = torch.fft.fft2(weight.double(), s=band.n) * _full(w_mask, band)
    y = torch.fft.ifft2(torch.einsum("bcuv,ocuv->bouv", x_hat, w_hat.conj())).real
    return y[..., : band.out[0], : band.out[1]]


def _full(mask: Tensor, band: Band) -> Tensor:
    rows = torch.arange(0, -band.n[0], -1).remainder(band.n[0])
    redundant = torch.arange(band.n[1] - half(band.n[1]), 0, -1)  # column N - v holds the mirror of v
    return torch.cat([mask, mask[..., rows, :][..., redundant]], dim=-1)


def _ideal(x: Tensor, weight: Tensor, x_mask: Tensor, w_mask: Tensor, band: Band) -> Tensor:
    return direct(x.double(), weight.double(), None, band, 1)


def _cost(case: Case) -> Cost:
    band, itemsize = _band_of(case), getattr(torch, case.dtype).itemsize
    batch, channels, out_channels = case["batch"], case["channels"], case["out_channels"]
    planes = batch * channels + out_channels * channels + batch * out_channels
    n = band.n[0] * band.n[1]
    pixels = batch * channels * math.prod(band.size) + out_channels * channels * math.prod(band.kernel)
    masks = (batch + out_channels) * channels * band.half_cells
    return Cost(
        bytes_read=itemsize * pixels + masks,
        bytes_written=itemsize * batch * out_channels * math.prod(band.out),
        flops=int(2.5 * n * math.log2(n) * planes) + 8 * batch * channels * out_channels * band.half_cells,
    )


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    kept = float(_inputs(case, "cpu")["x_mask"].double().mean())
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


# The experiment of the paper: a 3x32x32 image under a 3x5x5 filter on the 59x59 circle, 5310 cells.
_IMAGE: dict[str, tuple[Scalar, ...]] = {
    "batch": (1,),
    "channels": (3,),
    "out_channels": (1,),
    "height": (32,),
    "width": (32,),
    "kernel_size": (5,),
    "grid": ("seed",),
    "selection": ("lead", "top"),
    "compression": (0.0, 0.1, 0.5, 0.8),
    "input": ("photo",),
}
_RATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block(
            {
                **_IMAGE,
                "height": (9,),
                "width": (8,),
                "kernel_size": (3,),
                "compression": (0.0, 0.5),
                "input": ("white",),
            },
            passes=("forward", "both"),
        ),
    ),
    "quick": (Block(_IMAGE),),
    "study": (Block({**_IMAGE, "compression": _RATES, "input": ("photo", "pink", "white")}),),
    "gpu": (Block({**_IMAGE, "batch": (128,), "out_channels": (64,)}),),
    "asv": (Block({**_IMAGE, "compression": (0.1, 0.5)}),),
}

OPERATION = Operation(
    name="spectrum_selection",
    summary="convolution that keeps the low, or the large, coefficients of map and kernel",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019, section 6.2.10",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    ideal=_ideal,
    cost=_cost,
    fft_size=lambda case: _band_of(case).n,
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-12}, because="three FFTs in fp32 and a sum over a few channels"
    ),
    implementations=(Implementation("torch_fft", "baseline", _torch_fft, "rfft2, mask, einsum, irfft2"),),
    auto=lambda **inputs: Decision("torch_fft", "it is the only one"),
    observe=_observe,
    gradients=("x", "weight"),
)
