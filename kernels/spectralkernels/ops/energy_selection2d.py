"""Energy selection: keep the low frequencies of maps that hold a share E of their energy.

    y = Re F^-1( m . F(x) ),     m: the smallest low-pass with sum m |F|^2 >= E sum |F|^2, over batch and channels

One mask for the batch (T13), `masks.energy`: whole rings of frequencies (coarse), or of the last one only as many cells
as it takes (fine). `mode` counts each cell of the half spectrum once, as the authors' code does, or each by how often
the full spectrum has it, so that the sum is the maps' energy (T11, T12). `sk.nn.freeze_from_energy` fixes what a few
batches ask for. Source: Dziedzic et al. 2019, section 3.2, and their code, which searches the ring by bisection.

Floor: x in, y out, two FFTs, and three operations for the power of every cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.checks import REAL_DTYPES, as_number, check_choice, check_dtype
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map
from spectralkernels.layouts import as_given, batched
from spectralkernels.masks.bands import EnergyForm, EnergyMode, cell_power, energy, energy_of_power, ring
from spectralkernels.spectra import half


def energy_selection2d(
    x: Tensor, energy: float, *, mode: EnergyMode = "code", form: EnergyForm = "coarse", impl: str = "auto"
) -> Tensor:
    """Drop the high frequencies of maps that a share of their energy does not need.

    x: Real [batch, channel, height, width], or one sample of it; half types are computed in float32.
    energy: 0 < E <= 1, the share to keep. mode, form: as in `masks.energy`.
    Returns: Real, shape, dtype and layout of x. Differentiable in x, the selection held fast.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    if not 0.0 < as_number("energy", energy) <= 1.0:
        raise RangeError(f"energy must lie in (0, 1], the share to keep, got {energy}; divide a percentage by 100")
    check_choice("mode", mode, ("code", "parseval"))
    check_choice("form", form, ("coarse", "fine"))
    inputs = {"x": x, "energy": float(energy), "mode": mode, "form": form}
    return as_given(dispatch(OPERATION, impl, x.device.type, inputs), given, x)


# --- implementations ------------------------------------------------------------------------------------------------


def _one_spectrum(x: Tensor, energy: float, mode: EnergyMode, form: EnergyForm) -> Tensor:
    """The spectrum whose power chooses the cells is the one that is filtered; nothing is read on the host."""
    if x.numel() == 0:
        return x.clone()
    n = (x.shape[2], x.shape[3])
    with as_written(x.device.type):
        spectrum = torch.fft.rfft2(x.to(torch.float64 if form == "fine" else compute_dtype(x.dtype)))
        mask = energy_of_power(cell_power(spectrum.detach(), n, mode), n, energy, form)
        return torch.fft.irfft2(spectrum * mask, s=n).to(x.dtype)


def _bisection(x: Tensor, energy: float, mode: EnergyMode, form: EnergyForm) -> Tensor:
    """The authors' search: crop, sum, and halve the interval of the index, reading each sum on the host."""
    if x.numel() == 0:
        return x.clone()
    n = (x.shape[2], x.shape[3])
    with as_written(x.device.type):
        spectrum = torch.fft.rfft2(x.to(compute_dtype(x.dtype)))
        power = cell_power(spectrum.detach(), n, mode)
        wanted, low, high = energy * float(power.sum()), 1, max(half(n[0]), half(n[1]))
        while low < high:
            middle = (low + high) // 2
            enough = float((power * ring(n, middle, device=x.device)).sum()) >= wanted
            low, high = (low, middle) if enough else (middle + 1, high)
        return torch.fft.irfft2(spectrum * ring(n, low, device=x.device), s=n).to(x.dtype)


def _coarse(form: str, **rest: Any) -> str | None:
    return None if form == "coarse" else "the authors' code searches whole rows and columns; it needs form='coarse'"


# --- declaration ----------------------------------------------------------------------------------------------------


def _inputs(case: Case, device: str) -> dict[str, Any]:
    x = feature_map(case["input"], (case["batch"], case["channels"], case["height"], case["width"]), case.seed)
    placed = x.to(device=device, dtype=getattr(torch, case.dtype))
    return {"x": placed, **{name: case[name] for name in ("energy", "mode", "form")}}


def _reference(x: Tensor, energy: float, mode: EnergyMode, form: EnergyForm) -> Tensor:
    """In float64, on the full complex spectrum: cells join one by one, or ring by ring, until they suffice."""
    height, width = x.shape[2:]
    spectrum = torch.fft.fft2(x.double())
    power = spectrum.detach().abs().square().sum((0, 1)).tolist()
    cells: dict[int, list[tuple[int, int]]] = {}
    for u in range(height):
        for v in range(half(width)):
            cells.setdefault(max(min(u, height - u), v), []).append((u, v))
    weight = {v: 2.0 if mode == "parseval" and 0 < v < width / 2 else 1.0 for v in range(half(width))}
    steps = [found for _, found in sorted(cells.items())]
    steps = steps if form == "coarse" else [[cell] for found in steps for cell in found]
    total = sum(weight[v] * power[u][v] for step in steps for u, v in step)
    held, keep = 0.0, torch.zeros(height, width, dtype=torch.bool)
    for step in steps:
        for u, v in step:
            held += weight[v] * power[u][v]
            keep[u, v] = keep[-u % height, -v % width] = True
        if held >= energy * total:
            break
    return torch.fft.ifft2(spectrum * keep.to(x.device)).real


def _cost(case: Case) -> Cost:
    planes, itemsize = case["batch"] * case["channels"], getattr(torch, case.dtype).itemsize
    pixels = case["height"] * case["width"]
    flops = planes * (int(5 * pixels * math.log2(max(2, pixels))) + 3 * case["height"] * half(case["width"]))
    return Cost(itemsize * planes * pixels, itemsize * planes * pixels, flops)


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    inputs = _inputs(case, "cpu")
    x = inputs.pop("x")
    keep = inputs.pop("energy")
    kept = float(energy(x.double(), (case["height"], case["width"]), keep, **inputs).double().mean())
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "height": (32,),
    "width": (32,),
    "energy": (0.9,),
    "mode": ("code",),
    "form": ("coarse",),
    "input": ("pink",),
}
_TINY = {
    **_SHAPE,
    "batch": (2,),
    "channels": (3,),
    "height": (9,),
    "width": (8, 1),
    "energy": (0.5, 1.0),
    "mode": ("code", "parseval"),
    "form": ("coarse", "fine"),
}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block(_TINY), Block({**_TINY, "energy": (0.8,), "mode": ("code",)}, passes=("both",))),
    "quick": (Block({**_SHAPE, "form": ("coarse", "fine")}),),
    "study": (
        Block(
            {
                **_SHAPE,
                "energy": (0.1, 0.5, 0.8, 0.9, 0.95, 0.99),
                "mode": ("code", "parseval"),
                "form": ("coarse", "fine"),
                "input": ("photo", "pink"),
            }
        ),
        Block(_SHAPE, passes=("both",)),
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=("forward", "both")),),
    "asv": (Block(_SHAPE),),
}

OPERATION = Operation(
    name="energy_selection2d",
    summary="a low-pass of maps that keeps a share of their energy, by rings or by cells",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019, section 3.2, and their code",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    ideal=lambda x, **rest: x.double(),
    cost=_cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
        because="two FFTs in float32; half types are rounded once on the way out",
    ),
    implementations=(
        Implementation("one_spectrum", "kernel", _one_spectrum, "a running sum over rings, no search"),
        Implementation("bisection", "baseline", _bisection, "the authors' binary search", supports=_coarse),
    ),
    auto=lambda **inputs: Decision("one_spectrum", "one running sum finds the band, and the host waits for nothing"),
    observe=_observe,
    gradients=("x",),
)
