"""Who wins by how much over kernel size and compression, with the price: contours of the output's error."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spectralbench import names, rivals
from spectralbench.contest import cases, times
from spectralbench.history import History
from spectralbench.plot import Plot
from spectralbench.plot.style import LEAST_POINTS, MOST_PAGES, NotDrawn, Page
from spectralbench.settings import VIEWS, Setting, ours, settings

OPERATIONS = ("band_limited_conv2d", "band_limited_conv1d")
FAMILY = "conv"
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Errors that have a line."""


def draw(history: History, machine: str) -> Iterator[Page | NotDrawn]:
    """A map per setting with three or more kernel sizes and compressions, the largest first."""
    found = cases(history)
    every = [setting for name in OPERATIONS for setting in settings(name, found.get(name, ()))]
    drawable = [setting for setting in every if _large(setting)]
    if not drawable:
        yield NotDrawn("no band-limited convolution at three kernel sizes and three compressions")
    for index, setting in enumerate(drawable[:MOST_PAGES]):
        page = _page(setting, machine, "" if index == 0 else setting.name.replace(" ", "_").replace(">", ""))
        yield page or NotDrawn(f"{setting.name}: no {rivals.WORDS[FAMILY]} was measured beside it")


def _large(setting: Setting) -> bool:
    down = setting.view.down
    return down is not None and min(len(setting.values(down)), len(setting.columns())) >= LEAST_POINTS


def _page(setting: Setting, machine: str, suffix: str) -> Page | None:
    down = VIEWS[setting.operation].down
    assert down is not None, "a convolution has a kernel size"
    sizes, rates = setting.values(down), setting.columns()
    heights = np.full((len(sizes), len(rates)), math.nan)
    errors = np.full((len(sizes), len(rates)), math.nan)
    texts: dict[tuple[int, int], str] = {}
    for row, size in enumerate(sizes):
        for column, rate in enumerate(rates):
            case = setting.at(size, rate)
            own = None if case is None else ours(case, setting.view)
            against = None if case is None or own is None else case.against(own, FAMILY)
            if own is None or against is None:
                continue
            heights[row, column] = math.log2(against.faster)
            errors[row, column] = own.value("approximation_error") or 0.0
            texts[row, column] = f"{times(against.faster)}{against.mark}"
    if not texts:
        return None
    figure = Figure(figsize=(6.4, 0.42 * len(sizes) + 2.2), layout="constrained")
    ax = figure.subplots()
    reach = max(1.0, float(np.nanmax(np.abs(heights))))
    norm, colors = TwoSlopeNorm(0.0, -reach, reach), colormaps["PuOr_r"]
    ax.imshow(heights, cmap=colors, norm=norm, aspect="auto", origin="lower")
    for (row, column), text in texts.items():
        ink = "white" if abs(heights[row, column]) > 0.6 * reach else "black"
        # Above the lines of equal error, which a rim of the cell's own colour interrupts.
        rim = [withStroke(linewidth=4, foreground=colors(norm(heights[row, column])))]
        ax.text(column, row, text, ha="center", va="center", color=ink, fontsize="small", zorder=4, path_effects=rim)
    _contours(ax, errors)
    ax.set_xticks(range(len(rates)), [names.number(rate) for rate in rates])
    ax.set_yticks(range(len(sizes)), [names.number(size) for size in sizes])
    ax.set_xlabel("nominal compression c")
    ax.set_ylabel("kernel size K (cells)")
    ax.grid(visible=False)
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=ax, pad=0.02)
    bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda of, _: f"{2**of:.0f}x" if of >= 0 else f"1/{2**-of:.0f}x"))
    bar.set_label(f"our fastest over {rivals.WORDS[FAMILY]}")
    figure.suptitle(f"Speed-up over the library convolution, and the error it costs\n{machine} · {setting.name}",
                    fontsize="medium")  # fmt: skip
    note = "dashed: error of the answer · ~ not judged · = no difference shown · ° one layout measured"
    figure.supxlabel(note, fontsize="small", color="#555555")
    wins = sum(height > 0 for height in heights[~np.isnan(heights)])
    return Page(suffix, figure, f"Our fastest beats the torch convolution in {wins} of {len(texts)} places; the dashed "
                "lines say what error that costs before retraining.")  # fmt: skip


def _contours(ax: Axes, errors: np.ndarray) -> None:
    """Lines of equal error where every row of the map has its errors."""
    whole = ~np.isnan(errors).any(axis=1)
    if whole.sum() < 2 or errors.shape[1] < 2:
        return
    rows = np.flatnonzero(whole)
    columns = range(errors.shape[1])
    ax.contour(columns, rows, errors[rows], levels=LEVELS, colors="#666666", linewidths=1, linestyles="dashed")
    # Where two rows meet there is no number.
    middle = len(rows) // 2
    here = np.maximum.accumulate(errors[rows[middle - 1 : middle + 1]].mean(axis=0))
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    for level in LEVELS:
        if here[0] < level < here[-1]:
            ax.text(np.interp(level, here, columns), rows[middle - 1 : middle + 1].mean(), f"{100 * level:.0f} %",
                    ha="center", va="center", fontsize="x-small", color="#444444", bbox=paper)  # fmt: skip


FIGURE = Plot(draw, "history")
