"""From a mask to the `ModeList` that a truncated DFT computes for it, whatever the kind of mask.

A mask is read once on the host and becomes either a staircase (exact for bands and windows, tight for discs) or, where
it keeps few scattered cells, those cells themselves. Cells that the list holds and the mask drops have weight zero;
cells that it does not hold are never computed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from spectralkernels.checks import check_choice, samples
from spectralkernels.constants import outside_every_mode, traced
from spectralkernels.dft import too_large
from spectralkernels.errors import ShapeError
from spectralkernels.masks.geometry import check_grid, check_mask
from spectralkernels.modes import ModeList
from spectralkernels.operators import nothing_traces
from spectralkernels.spectra import half

# A block more costs a launch and a small matrix product in each of three transforms.
MOST_STEPS = 4
STEP_PENALTY = 0.04
# One large product runs at a higher rate than many small ones, and fewer modes are multiplied afterwards. On 2 CPU
# cores, B8 64 -> 64 channels, 32x32, K7 and K15, scattered cells: the dense form wins up to 2.8 to 3.7 times the FLOPs.
DENSE_ADVANTAGE = 2.5


def mode_list(mask: Tensor, n: tuple[int, int], *, form: Literal["auto", "steps", "cells"] = "auto") -> ModeList:
    """List the modes at which a mask is not zero, in the form that is cheaper to transform.

    mask: Bool or Float [..., N_h, N_w // 2 + 1]; the list serves all masks of a batch. It is copied to the host.
    form: "steps", "cells", or "auto": by the arithmetic of a map as large as the grid. A mask of zeros lists the mean.
    Raises: ShapeError if the mask does not fit the grid; RangeError on another form.
    """
    check_choice("form", form, ("auto", "steps", "cells"))
    check_grid(n)
    check_mask(mask)
    if mask.dim() < 2 or mask.shape[-2:] != (n[0], half(n[1])):
        raise ShapeError(f"mask must end in [{n[0]}, {half(n[1])}] on the grid {tuple(n)}, got {list(mask.shape)}")
    if nothing_traces() or traced(mask):
        return _listed(mask.detach(), (n[0], n[1]), form)
    return outside_every_mode(lambda: _listed(samples(mask).detach(), (n[0], n[1]), form), (mask.device,))


def _listed(mask: Tensor, n: tuple[int, int], form: str) -> ModeList:
    kept = mask if mask.dtype == torch.bool else mask != 0
    kept = (kept if mask.dim() == 2 else kept.flatten(0, -3).any(0)).cpu()
    reach = (_row_reach(n[0]) * kept).amax(0)
    stepped = ModeList(n, staircase(n[0], tuple(reach.tolist())))
    count = int(kept.sum())
    if form == "steps" or count == 0 or (form == "auto" and not _prefers_cells(count, stepped)):
        return stepped
    return ModeList(n, cells=tuple((u, v) for u, v in kept.nonzero().tolist()))


def _row_reach(n: int) -> Tensor:
    """The smallest k with |u| < k for every row, Int64 [n, 1], on the host."""
    rows = torch.arange(n, device="cpu")
    return torch.minimum(rows, n - rows).add(1).unsqueeze(1)


def _prefers_cells(count: int, stepped: ModeList) -> bool:
    """Whether one dense product with the cells is cheaper than two products with the staircase, and small enough."""
    height, width = stepped.n
    dense = 4 * count * height * width
    separable = 4 * height * width * stepped.kept[1] + 8 * height * len(stepped)
    fits = too_large(stepped.n, stepped.kept, (stepped.n,), 4, count) is None
    return fits and dense < DENSE_ADVANTAGE * separable


@lru_cache(maxsize=1024)
def staircase(n: int, reach: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Blocks (columns, k) that hold the rows |u| < reach[v] of every column v with the fewest modes.

    At most MOST_STEPS blocks, and one more only if it saves STEP_PENALTY of the bounding box. n: rows of the grid.
    """
    columns = max((v + 1 for v, k in enumerate(reach) if k), default=0)
    if columns == 0:
        return ((1, 1),)
    reach = reach[:columns]
    if len(set(reach)) == 1:
        return ((columns, reach[0]),)
    penalty = STEP_PENALTY * columns * _rows(n, max(reach))
    # best[end] = (cost, blocks) of the first `end` columns, for one more block in each round.
    best: dict[int, tuple[float, tuple[tuple[int, int], ...]]] = {0: (0.0, ())}
    for _ in range(MOST_STEPS):
        longer = dict(best)
        for start, (cost, blocks) in best.items():
            k = 0
            for end in range(start + 1, columns + 1):
                k = max(k, reach[end - 1])
                found = cost + penalty + (end - start) * _rows(n, k)
                if end not in longer or found < longer[end][0]:
                    longer[end] = (found, (*blocks, (end - start, k)))
        best = longer
    return best[columns][1]


def _rows(n: int, k: int) -> int:
    return min(2 * k - 1, n) if k else 0
