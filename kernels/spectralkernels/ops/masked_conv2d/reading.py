"""A mask read at the modes of a plan alone, conjugate pairs treated alike as in `masks.hermitian`, to the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.modes import ModeList
from spectralkernels.spectra import half


@dataclass(frozen=True, slots=True)
class Cells:
    """Where modes lie in a flattened half spectrum, F of them.

    where, mirrored: Int64 [F], of a mode and of its conjugate where the half spectrum holds both, else of itself.
    paired: Bool [F], which have another cell for a conjugate; None: no mode does.
    dropped: Bool [F], which count as zero whatever the mask says; None: no mode does.
    """

    where: Tensor
    mirrored: Tensor
    paired: Tensor | None
    dropped: Tensor | None


@constant
def cells_of(modes: ModeList, listed: ModeList, device: torch.device) -> Cells:
    """The cells of `modes`, of which those that are not in `listed` are dropped."""
    columns, (rows, width) = half(modes.n[1]), modes.n
    mirror = [((rows - u) % rows if v == 0 or 2 * v == width else u, v) for u, v in modes.indices]
    where, mirrored = (
        torch.tensor([u * columns + v for u, v in cells], device=device) for cells in (modes.indices, mirror)
    )
    counted = set(listed.indices)
    paired = [cell != other for cell, other in zip(modes.indices, mirror, strict=True)]
    marks = paired, [cell not in counted for cell in modes.indices]
    return Cells(where, mirrored, *(torch.tensor(mark, device=device) if any(mark) else None for mark in marks))


def weights_of(mask: Tensor, cells: Cells, mean: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Weights [1 or B, F] in a dtype, of a mask [N_h, N_w // 2 + 1] or [B, 1, ...]. mean: of the mean of a pair."""
    rows = mask.reshape(-1, mask.shape[-2] * mask.shape[-1])
    weights = rows.index_select(1, cells.where).to(mean)
    if cells.paired is not None:
        mirrored = rows.index_select(1, cells.mirrored).to(mean)
        both = weights | mirrored if mean == torch.bool else (weights + mirrored) / 2
        weights = torch.where(cells.paired, both, weights)
    if cells.dropped is not None:
        weights = weights.masked_fill(cells.dropped, 0)
    return weights.to(dtype)
