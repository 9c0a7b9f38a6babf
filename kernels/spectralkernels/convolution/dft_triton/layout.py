"""How the kernels compute the modes of a `ModeList`: by two matrices for a box around them, or by one for them alone.

A box |u| < k_h, v < k_w has separable transforms; modes of the box that are not listed get the weight zero. One matrix
over exactly the listed modes takes less where they fill their box badly, and for maps of up to 16 x 16 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.modes import ModeList, Pairs, box, modes_of
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
def layout_of(text: str) -> Layout:
    """The layout that words like `separable box 33,33 12,12` say, which pass through a custom operator as one constant.

    "separable": the box around the modes; "matrix": the modes alone, by one matrix. The rest as in `modes`. ValueError
    on any other words.
    """
    how, _, written = text.partition(" ")
    if how not in ("separable", "matrix"):
        raise ValueError(f"a layout must begin with separable or matrix, got {text!r}")
    modes = modes_of(written)
    if how == "matrix":
        return Layout(modes.n, modes.kept, cells=modes.indices)
    whole = box(modes.n, modes.kept)
    return Layout(modes.n, modes.kept, listed=None if len(modes) == len(whole) else modes)


@lru_cache(maxsize=256)
def _layout_for(modes: ModeList, size: tuple[int, ...]) -> str:
    whole = box(modes.n, modes.kept)
    if len(modes) == len(whole):
        return f"separable {whole}"
    height, width = size
    separable = 4 * height * width * modes.kept[1] + 8 * height * len(whole)
    if height * width <= DENSE_PIXELS or 4 * len(modes) * height * width <= separable:
        return f"matrix {ModeList(modes.n, cells=modes.indices)}"
    return f"separable {modes}"


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
def _constant_layout(n: tuple[int, ...], steps: Pairs, cells: Pairs, size: tuple[int, ...]) -> str:
    return _layout_for(ModeList(n, steps, cells), size)


@_constant
def box_layout(n: tuple[int, ...], kept: tuple[int, ...]) -> str:
    """The layout, in the words of `layout_of`, of the box |u| < k_h, v < k_w."""
    return _box_layout(tuple(n), tuple(kept))


@lru_cache(maxsize=256)
def _box_layout(n: tuple[int, ...], kept: tuple[int, ...]) -> str:
    return f"separable {box(n, kept)}"


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
