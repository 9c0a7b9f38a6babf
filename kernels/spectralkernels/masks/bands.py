"""Hard masks: a rectangle by rate, a square by index or by energy, a disc."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from spectralkernels.checks import (
    REAL_DTYPES,
    as_integer,
    as_number,
    check_choice,
    check_compression,
    check_dims,
    check_dtype,
    check_tensor,
)
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.errors import RangeError, ShapeError
from spectralkernels.masks.geometry import Device, Grid, check_grid, frequencies, hermitian, rings
from spectralkernels.spectra import half, hermitian_weights, low_pass_mask

EnergyMode = Literal["code", "parseval"]
EnergyForm = Literal["coarse", "fine"]


def rectangular(n: Grid, compression: float, *, device: Device = "cpu") -> Tensor:
    """Keep |u| < k_h and v < k_w, k = floor((N // 2 + 1) sqrt(1 - compression)) per axis; 0 keeps everything.

    Returns: Bool [N_h, N_w // 2 + 1]. Raises: RangeError unless 0 <= compression < 1.
    Source: Dziedzic et al. 2019, their code; the band of `band_limited_conv2d`.
    """
    check_grid(n)
    compression = as_number("compression", compression)
    check_compression(compression)
    return low_pass_mask((n[0], n[1]), compression, device)


def ring(n: Grid, index: int | Tensor, *, device: Device = "cpu") -> Tensor:
    """Keep max(|u|, v) < index: the square band of an index that `energy_index` found, frozen.

    index: at least 1; an int, or an integer tensor of no dimensions on any device (no synchronisation).
    Returns: Bool [N_h, N_w // 2 + 1], on the device of `index` if that is a tensor.
    """
    check_grid(n)
    if isinstance(index, Tensor):
        check_tensor("index", index)
        if index.dim() or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ShapeError(f"index must be an integer tensor of no dimensions, got {index.dtype} {list(index.shape)}")
        return rings(n, index.device) < index
    index = as_integer("index", index)
    if index < 1:
        raise RangeError(f"index must be at least 1, which keeps the mean alone, got {index}")
    return rings(n, torch.device(device)) < index


def radial(n: Grid, fraction: float | None = None, *, radius: float | None = None, device: Device = "cpu") -> Tensor:
    """Keep the disc u^2 + v^2 <= r^2, in units of frequency indices.

    fraction: of half-spectrum cells to keep, 0 < fraction <= 1; r is the smallest that keeps at least so many.
    radius: r >= 0, instead.
    Returns: Bool [N_h, N_w // 2 + 1]. Raises: RangeError unless exactly one of the two is given, in its range.
    """
    check_grid(n)
    if (fraction is None) == (radius is None):
        raise RangeError(f"radial takes either fraction or radius, got fraction={fraction}, radius={radius}")
    rows, columns = frequencies(n, torch.device(device))
    squared = rows.square().unsqueeze(1) + columns.square()
    if radius is not None:
        radius = as_number("radius", radius)
        if not radius >= 0.0:
            raise RangeError(f"radius must be at least 0, got {radius}")
        return squared <= radius * radius
    assert fraction is not None
    fraction = as_number("fraction", fraction)
    if not 0.0 < fraction <= 1.0:
        raise RangeError(f"fraction must lie in (0, 1], the share of cells to keep, got {fraction}")
    cells = min(squared.numel(), max(1, math.ceil(fraction * squared.numel())))
    return squared <= squared.flatten().sort().values[cells - 1]


def energy_index(x: Tensor, n: Grid, keep: float, *, mode: EnergyMode = "code") -> Tensor:
    """Find the smallest index k whose band max(|u|, v) < k holds `keep` of the energy of a batch of maps.

    E(k) = sum over the band, batch and channels of a_v |F(x)|^2;  k = min { k : E(k) >= keep E(all) }

    One histogram over the rings max(|u|, v), then a running sum: no search, no synchronisation.
    x: Real [batch, channel, height, width], not larger than the grid. keep: 0 < keep <= 1.
    mode: "code": a = 1, every half-spectrum cell once, as the authors' code sums; "parseval": a = 2 off the
        self-conjugate columns, so that E(all) is the energy of the maps.
    Returns: Int64 [], on the device of x. It depends on the whole batch; `ring(n, int(k))` freezes it.
    Raises: ShapeError, DtypeError on x; RangeError on keep or mode.
    Source: Dziedzic et al. 2019, and their code.
    """
    _check_energy(x, n, keep, mode)
    if x.numel() == 0:
        return torch.ones((), dtype=torch.int64, device=x.device)
    spectrum = torch.fft.rfft2(x.detach().to(compute_dtype(x.dtype)), s=n)
    return _index_of(cell_power(spectrum, n, mode), n, keep)


def energy(x: Tensor, n: Grid, keep: float, *, mode: EnergyMode = "code", form: EnergyForm = "coarse") -> Tensor:
    """Keep the low frequencies that hold `keep` of the energy of the batch.

    form: "coarse": whole rows and columns, the smallest square band of `energy_index`. "fine": of the last row and
        column only as many cells as it takes, in the order of the cells' rows; a conjugate pair whole. Its spectrum is
        computed in float64, so that rounding cannot choose other cells.
    The other arguments and errors are those of `energy_index`.
    Returns: Bool [N_h, N_w // 2 + 1], on the device of x. Not differentiable. Source: Dziedzic et al. 2019.
    """
    check_choice("form", form, ("coarse", "fine"))
    if form == "coarse":
        return ring(n, energy_index(x, n, keep, mode=mode))
    _check_energy(x, n, keep, mode)
    if x.numel() == 0:
        return ring(n, 1, device=x.device)
    return energy_of_power(cell_power(torch.fft.rfft2(x.detach().double(), s=n), n, mode), n, keep, form)


def cell_power(spectrum: Tensor, n: Grid, mode: EnergyMode) -> Tensor:
    """|F|^2 of every cell over batch and channels, weighted as in `energy_index`: Float64 [N_h, N_w // 2 + 1]."""
    # Planes first: their sum is a tenth of the time of a sum over both ends at once.
    power = torch.view_as_real(spectrum).square().flatten(0, 1).sum(0, dtype=torch.float64).sum(-1)
    if mode == "parseval":
        power = power * hermitian_weights(n[1], half(n[1])).to(power.device)
    return power


def energy_of_power(power: Tensor, n: Grid, keep: float, form: EnergyForm) -> Tensor:
    """The mask of `energy`, from the power of every cell."""
    if form == "coarse":
        return ring(n, _index_of(power, n, keep))
    ring_of = rings(n, power.device)
    order = ring_of.flatten().argsort(stable=True)
    ordered = power.flatten()[order]
    held = ordered.cumsum(0)
    mask = torch.empty_like(ring_of, dtype=torch.bool)
    # What lies before a cell does not suffice; a NaN suffices for nothing, so that all of its map is kept.
    mask.view(-1)[order] = ~(held - ordered >= keep * held[-1])
    mask[0, 0] = True
    return hermitian(mask, n)


def _index_of(power: Tensor, n: Grid, keep: float) -> Tensor:
    bins = max(half(n[0]), half(n[1]))
    histogram = power.new_zeros(bins).index_add(0, rings(n, power.device).flatten(), power.flatten())
    held = histogram.cumsum(0)
    # A NaN reaches nothing, so that all of its map is kept.
    return (~(held >= keep * held[-1])).sum().clamp(max=bins - 1) + 1


def _check_energy(x: Tensor, n: Grid, keep: float, mode: str) -> None:
    check_grid(n)
    check_tensor("x", x)
    check_dims("x", x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    if x.shape[2] > n[0] or x.shape[3] > n[1]:
        raise ShapeError(f"maps of {tuple(x.shape[2:])} do not fit on the grid {tuple(n)}; take n from masks.fft_grid")
    if not 0.0 < as_number("keep", keep) <= 1.0:
        raise RangeError(
            f"keep must lie in (0, 1], the share of energy to keep, got {keep}; divide a percentage by 100"
        )
    check_choice("mode", mode, ("code", "parseval"))
