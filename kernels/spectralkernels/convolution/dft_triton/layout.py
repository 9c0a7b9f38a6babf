"""Which modes the kernels compute, in which order, and where a mask holds their weights.

A box of modes |u| < k_h, v < k_w has separable transforms. A list that fills a box badly, or belongs to maps of up to
16 x 16 pixels, has one matrix over exactly its cells. Cells of the box that are not listed have the weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.dft import Steps
from spectralkernels.masks.modes import ModeList
from spectralkernels.spectra import full_frequencies, half

DENSE_PIXELS = 256
"""Planes of up to 16 x 16 pixels are transformed by one matrix: more arithmetic, but one perfect product."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The modes of a spectrum [V, U, 2, planes]: the box `kept` of the circle `n`, or (V = F, U = 1) listed cells.

    listed: the modes that count where not all of a box do, else None.
    """

    n: tuple[int, ...]
    kept: tuple[int, ...]
    cells: tuple[tuple[int, int], ...] = ()
    listed: ModeList | None = None

    def __hash__(self) -> int:
        """Of what differs between most: thousands of cells would be hashed at every look-up."""
        return hash((self.n, self.kept, len(self.cells)))

    @property
    def modes_v(self) -> int:
        return len(self.cells) or self.kept[-1]

    @property
    def modes_u(self) -> int:
        return 1 if self.cells or len(self.n) == 1 else min(2 * self.kept[0] - 1, self.n[0])

    @property
    def mean_first(self) -> bool:
        """Whether mode 0 is the mean of a map."""
        return not self.cells or self.cells[0] == (0, 0)


@lru_cache(maxsize=256)
def _written(form: str, n: tuple[int, ...], numbers: tuple[int, ...]) -> str:
    return f"{form} {','.join(map(str, n))} {','.join(map(str, numbers))}"


@lru_cache(maxsize=256)
def layout_of(text: str) -> Layout:
    """The layout that words like `box 33,33 12,12` say, which pass through a custom operator as one constant.

    The form says what the last numbers are: "box" (k_h, k_w); "steps" or "cells" of a `ModeList`, in their box;
    "matrix": the cells that one matrix transforms.
    """
    form, *parts = text.split(" ")
    n, numbers = (tuple(map(int, part.split(","))) for part in parts)
    if form == "box":
        return Layout(n, numbers)
    pairs, grid = tuple(zip(numbers[::2], numbers[1::2], strict=True)), (n[0], n[1])
    listed = ModeList(grid, steps=pairs) if form == "steps" else ModeList(grid, cells=pairs)
    if form == "matrix":
        return Layout(n, listed.kept, cells=listed.indices)
    return Layout(n, listed.kept, listed=listed)


@lru_cache(maxsize=256)
def _layout_for(modes: ModeList, size: tuple[int, ...]) -> str:
    box = Layout(modes.n, modes.kept)
    count, in_box = len(modes), box.modes_u * box.modes_v
    if count == in_box:
        return _written("box", modes.n, modes.kept)
    height, width = size
    separable = 4 * height * width * box.modes_v + 8 * height * in_box
    if height * width <= DENSE_PIXELS or 4 * count * height * width <= separable:
        return _written("matrix", modes.n, tuple(number for cell in modes.indices for number in cell))
    pairs = modes.cells or modes.steps
    return _written("cells" if modes.cells else "steps", modes.n, tuple(number for pair in pairs for number in pair))


def layout_for(modes: ModeList, size: tuple[int, ...]) -> str:
    """The layout, in the words of `layout_of`, by which the modes of a mask are computed for maps of `size`."""
    return _constant_layout(modes.n, modes.steps, modes.cells, tuple(size))


def _constant(function: Callable[..., str]) -> Callable[..., str]:
    """Decorator: torch.compile calls the function while it traces, and takes its result for a constant of the graph.

    The mark of `torch.compiler.assume_constant_result`, without its import of torch._dynamo: 2 s in every process.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010
    return function


# torch.compile may see symbols in the place of these numbers; a layout is a constant of the graph, under their guards.
# It rebuilds the arguments: torch 2.9 can do so with tuples, not with a ModeList.
@_constant
def _constant_layout(n: tuple[int, int], steps: Steps, cells: Steps, size: tuple[int, ...]) -> str:
    return _layout_for(ModeList(n, steps, cells), size)


@_constant
def box_layout(n: tuple[int, ...], kept: tuple[int, ...]) -> str:
    """The layout, in the words of `layout_of`, of the box |u| < k_h, v < k_w."""
    return _written("box", tuple(n), tuple(kept))


@constant
def cells_of(layout: Layout, device: torch.device) -> Tensor:
    """Int32 [modes]: where each mode lies in a flattened half spectrum; -1 for a cell of the box that is not listed."""
    columns = half(layout.n[1])
    order: Sequence[tuple[int, int]] = layout.cells or [
        (u, v) for v in range(layout.kept[1]) for u in full_frequencies(layout.n[0], layout.kept[0])
    ]
    counted = set(order) if layout.listed is None else set(layout.listed.indices)
    indices = [u * columns + v if (u, v) in counted else -1 for u, v in order]
    return torch.tensor(indices, dtype=torch.int32).to(device)
