"""Random masks: a random low-pass, and coefficients dropped one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.checks import as_integer, as_number, kind
from spectralkernels.errors import DtypeError, RangeError
from spectralkernels.masks.geometry import Device, Grid, check_grid, frequencies, self_conjugate
from spectralkernels.spectra import half


def frequency_dropout(
    n: Grid,
    lowest: float = 0.3,
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    device: Device = "cpu",
) -> Tensor:
    """Keep |u| <= t (1 + N_h // 2) and v <= t (1 + N_w // 2) for a random t ~ U(lowest, 1): a random low-pass.

    lowest: 0 <= lowest <= 1; see `dropout_floor` for the published schedule. samples: None draws one t for the batch;
    a number draws one per sample. Use no mask when not training: the kept coefficients are not scaled.
    Returns: Bool [N_h, N_w // 2 + 1], or [samples, 1, N_h, N_w // 2 + 1].
    Source: Rippel, Snoek and Adams, "Spectral Representations for Convolutional Neural Networks" (2015).
    """
    check_grid(n)
    lowest = as_number("lowest", lowest)
    if not 0.0 <= lowest <= 1.0:
        raise RangeError(f"lowest must lie in [0, 1], a share of the band, got {lowest}")
    rows, columns = frequencies(n, torch.device(device))
    t = _draw(() if samples is None else (_count(samples), 1, 1, 1), generator, device) * (1.0 - lowest) + lowest
    return (rows.unsqueeze(1) <= t * half(n[0])) & (columns <= t * half(n[1]))


def dropout_floor(layer: int, layers: int, first: float = 0.3, last: float = 0.15) -> float:
    """The `lowest` of `frequency_dropout` in a network: first + (layer / layers) (last - first), layer 1 .. layers."""
    layer, layers = as_integer("layer", layer), as_integer("layers", layers)
    first, last = as_number("first", first), as_number("last", last)
    if not 1 <= layer <= layers:
        raise RangeError(f"layer must lie in 1 .. {layers}, got {layer}")
    return first + layer / layers * (last - first)


def cell_dropout(
    n: Grid,
    p: float = 0.5,
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    device: Device = "cpu",
) -> Tensor:
    """Drop every coefficient with probability p and scale the others by 1 / (1 - p), so that the mean mask is 1.

    A conjugate pair of a self-conjugate column has one draw. p: 0 <= p < 1. samples: as in `frequency_dropout`.
    Returns: Float32 [N_h, N_w // 2 + 1], or [samples, 1, N_h, N_w // 2 + 1].
    """
    check_grid(n)
    p = as_number("p", p)
    if not 0.0 <= p < 1.0:
        raise RangeError(f"p must lie in [0, 1), the probability to drop a coefficient, got {p}")
    leading = () if samples is None else (_count(samples), 1)
    draws = _draw((*leading, n[0], half(n[1])), generator, device)
    rows, _ = frequencies(n, draws.device)
    draws = torch.where(self_conjugate(n[1], draws.device), draws[..., rows, :], draws)
    return (draws >= p).float() / (1.0 - p)


def _draw(shape: tuple[int, ...], generator: torch.Generator | None, device: Device) -> Tensor:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise DtypeError(f"generator must be a torch.Generator, got {kind(generator)}")
    where = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=where).to(device)


def _count(samples: int) -> int:
    samples = as_integer("samples", samples)
    if samples < 0:
        raise RangeError(f"samples must be at least 0, got {samples}")
    return samples
