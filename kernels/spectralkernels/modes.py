"""Which coefficients of a half spectrum are kept: one description for every convolution, and its text.

    box        frequencies |u| < k_h, v < k_w; of a series v < k: a band
    staircase  blocks of half-axis columns, each with rows |u| < k of its own: windows exactly, discs tightly
    cells      any coefficients, one by one

A box is a staircase of one step. Custom operators take no objects, so that they are given the text, a constant of every
graph: `box 33,33 12,12`, `steps 33,33 4,12,8,3`, `cells 33,33 0,0,5,3`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from spectralkernels.spectra import full_count, half, step_cells

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ModeList:
    """Modes of the half spectrum of the grid `n`, hashable, free of tensors: a staircase or a list of cells.

    n: one size, or two; the last axis is the half axis.
    steps: (columns, k) per block of consecutive columns from 0: its modes are |u| < k, none if k = 0.
    cells: (row, column) of each mode; empty for a staircase.
    """

    n: tuple[int, ...]
    steps: Pairs = ()
    cells: Pairs = ()

    @property
    def indices(self) -> Pairs:
        """(row, column) of every mode, in the order in which the transform holds them."""
        return self.cells or step_cells(self.rows, self.steps)

    @property
    def rows(self) -> int:
        """Frequencies of the full axis; a series has one row."""
        return self.n[0] if len(self.n) == 2 else 1

    @property
    def kept(self) -> tuple[int, ...]:
        """The smallest box (k_h, k_w) with every mode in |u| < k_h, v < k_w; (k,) of a series."""
        if self.cells:
            return max(min(u, self.n[0] - u) for u, _ in self.cells) + 1, max(v for _, v in self.cells) + 1
        columns = sum(width for width, _ in self.steps)
        return (columns,) if len(self.n) == 1 else (max(k for _, k in self.steps), columns)

    @property
    def count(self) -> int:
        """How many modes there are; unlike the length it may be traced."""
        return len(self.cells) or sum(width * full_count(self.rows, k) for width, k in self.steps if k)

    @property
    def whole(self) -> bool:
        """Whether every mode of the grid is there."""
        return self.count == self.rows * half(self.n[-1])

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        """The text that `modes_of` reads."""
        form, pairs = ("cells", self.cells) if self.cells else ("steps", self.steps)
        numbers = tuple(number for pair in pairs for number in pair)
        if form == "steps" and len(self.steps) == 1:
            form, numbers = "box", self.kept
        return f"{form} {','.join(map(str, self.n))} {','.join(map(str, numbers))}"


def box(n: tuple[int, ...], kept: tuple[int, ...]) -> ModeList:
    """The modes of a band: |u| < k_h, v < k_w, or v < k."""
    return ModeList(n, ((kept[-1], kept[0] if len(n) == 2 else 1),))


def every_mode(n: tuple[int, int]) -> ModeList:
    """The whole half spectrum."""
    return box(n, (half(n[0]), half(n[1])))


@lru_cache(maxsize=256)
def modes_of(text: str) -> ModeList:
    """The modes that a text says, see the top of this file. ValueError on any other."""
    words = text.split(" ")
    if len(words) == 3 and words[0] in ("box", "steps", "cells"):
        n, numbers = (tuple(map(int, part.split(","))) for part in words[1:])
        if words[0] == "box":
            return box(n, numbers)
        pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        return ModeList(n, steps=pairs) if words[0] == "steps" else ModeList(n, cells=pairs)
    raise ValueError(f"modes must be written as a box, steps or cells, got {text!r}")
