"""Steps of one network over the compression, relative to its uncompressed form (plots P01 and P18): seed 003, 7 and 13.

Percent of the same layers at compression 0, as in the paper; a dashed line is the network with torch's convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from spectralbench.plot.style import panels, percent_axis, save, sequence_looks, styled
from spectralbench.steps import NATIVE, RATED, Row

QUANTITIES: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("inference", lambda row: row.inference),
    ("training step", lambda row: row.step),
    ("saved for backward", lambda row: row.saved),
    ("peak memory", lambda row: row.peak),
)


def draw(found: Sequence[Row], title: str, path: Path) -> Path:
    """Write the figure to `path` and return it.

    Raises: ValueError where no kind of layers has a rate of 0 and another; OSError where it cannot be written.
    """
    kinds = [kind for kind in RATED if _over(found, kind)]
    if not kinds:
        raise ValueError("no layers were measured at compression 0 and at another, so there is nothing to compare")
    looks = sequence_looks([name for name, _ in QUANTITIES])
    native = next((row for row in found if row.layers == NATIVE), None)
    with styled():
        figure, axes = panels(1, len(kinds), sharey=True)
        for ax, kind in zip(axes[0], kinds, strict=True):
            own = _over(found, kind)
            for name, value in QUANTITIES:
                whole = value(own[0])
                points = [(row.achieved, value(row)) for row in own]
                if whole:
                    drawn = [(x, y / whole) for x, y in points if x is not None and y is not None]
                    ax.plot(*zip(*drawn, strict=True), label=name, **looks[name].line())
                    if native is not None and (beside := value(native)) is not None:
                        ax.axhline(beside / whole, color=looks[name].color, linestyle=(0, (4, 3)), linewidth=1)
            ax.set_title(kind)
            ax.set_ylim(bottom=0)
            percent_axis(ax, "x", "achieved compression")
            percent_axis(ax, "y", "of compression 0; dashed: native")
        figure.suptitle(title, fontsize="medium")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        return save(figure, path)


def _over(found: Sequence[Row], kind: str) -> list[Row]:
    """The rows of a kind by rate, if the first is 0 and there is another."""
    own = sorted((row for row in found if row.layers == kind and row.failed is None), key=lambda row: float(row.rate))
    return own if len(own) > 1 and float(own[0].rate) == 0.0 else []
