"""Pictures of the mathematics itself, drawn from two photographs and from digits: they need torch, and no record.

One module per picture, found by walking this folder for its `PICTURE`: a function without arguments that returns a
`plot.style.Page`. Nothing in them is a time: what was measured is drawn by `plot`, from records alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spectralbench.text import meant

if TYPE_CHECKING:  # asking for the names needs neither torch nor matplotlib
    from torch import Tensor

    from spectralbench.plot.style import Page


def names() -> tuple[str, ...]:
    """Every picture by its file, none of which is imported."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def draw_all(out: Path, only: Sequence[str] = ()) -> Iterator[Path]:
    """Write `out/<picture>.png` for the pictures in `only`, or for all.

    Raises: ValueError with the known names on another one; Unsupported where scikit-learn is missing; OSError.
    """
    for name in only:
        if name not in names():
            raise ValueError(f"unknown picture {name!r}{meant(name, names())}")
    from spectralbench.plot.style import save, styled

    out.mkdir(parents=True, exist_ok=True)  # before minutes of drawing
    for name in only or names():
        picture: Callable[[], Page] = importlib.import_module(f"{__name__}.{name}").PICTURE
        with styled():
            page = picture()
            yield save(page.figure, out / f"{name}.png", page.finding)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's handwritten digits and their classes, shuffled: Float32 [1797, 1, 16, 16], Int64 [1797]."""
    import torch

    from spectralkernels.errors import Unsupported

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Unsupported("pictures need scikit-learn: pip install 'spectralbench[images]'") from error
    found = load_digits()
    maps = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(maps, size=(16, 16), mode="bilinear")
    return enlarged[order], torch.tensor(found.target)[order]


@cache
def photograph(side: int = 256) -> Tensor:
    """The middle of scikit-learn's photograph of a temple in grey: Float64 [side, side], from 0 to 1; side <= 427."""
    import torch

    from spectralkernels.errors import Unsupported

    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise Unsupported("pictures need scikit-learn: pip install 'spectralbench[images]'") from error
    grey = torch.from_numpy(load_sample_image("china.jpg").copy()).double().mean(2) / 255.0
    top, left = ((whole - side) // 2 for whole in grey.shape)
    return grey[top : top + side, left : left + side]
