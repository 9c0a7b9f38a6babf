"""One style for every figure: it survives a black-and-white printer and colour-blind eyes.

An implementation has a colour and a marker of its own, the same in every figure of every machine (`LOOKS`). Kernels are
solid lines with filled markers; baselines are dashed with hollow ones. The palette is Okabe and Ito's without yellow,
which vanishes on paper. A figure is at most 1,200 pixels wide, with its legend below, so that a page of 830 shows it
readably.
"""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spectralbench.metrics import load_metrics
from spectralbench.quantity import amount, scale

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ((0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)), (0, (10, 3)))
WIDTH = {1: 5.2, 2: 7.2, 3: 8.3}
"""Inches by the number of panels beside each other: 8.3 are 1,195 pixels."""
PANEL_HEIGHT = 2.5
DPI = 144
MOST_PAGES = 2
LEAST_POINTS = 3
"""Places on x that a curve needs."""

LOOKS: Mapping[str, tuple[int, int]] = {
    "dft_native": (1, 0), "dft_gemm": (0, 1), "dft_gemm_frozen": (5, 2), "dft_native_frozen": (4, 2),
    "dft_triton": (2, 0), "fused_depthwise": (2, 3), "fused_series": (2, 4), "cufft_triton": (2, 5),
    "torch conv": (7, 3), "direct": (7, 3), "direct_uncompressed": (7, 3), "torch.fft": (3, 4), "torch_fft": (3, 4),
    "torch_fft_fast": (3, 5), "torch_fft_compile": (4, 9), "torch_fft_compiled": (4, 9), "direct_lowpass": (6, 7),
    "fft_conv_pytorch": (5, 8), "dense": (7, 6), "coo": (3, 1), "csr": (4, 2), "index": (0, 3), "bitmap": (1, 0),
    "bitmap_compact": (1, 5), "triton": (2, 0), "triton_2019": (2, 9), "einsum": (7, 4), "complex_bmm": (0, 1),
    "real_bmm": (1, 2), "three_mult": (6, 8), "broadcast": (5, 9),
}  # fmt: skip
"""Colour and marker (indices) of the implementations that figures know; any other's follow from its name."""


@dataclass(frozen=True, slots=True)
class Page:
    """A drawn figure; `suffix` tells several of one family apart; `finding` is the sentence that it shows."""

    suffix: str
    figure: Figure
    finding: str = ""


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """Why a figure, or a part of it, is missing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """How one line is drawn."""

    color: str
    marker: str
    dash: Any
    filled: bool

    def line(self) -> dict[str, Any]:
        """The keywords for `Axes.errorbar` and `Line2D`."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.dash,
            "markerfacecolor": self.color if self.filled else "white",
            "markeredgecolor": self.color,
        }


@contextmanager
def styled() -> Iterator[None]:
    """The style of every figure whatever matplotlibrc says, left as it was found."""
    settings = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("paper", font_scale=1.1),
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that a figure looks the same everywhere
        "grid.color": "#DDDDDD",
        "lines.linewidth": 1.5,
        "lines.markersize": 5,
        "axes.titlesize": "medium",
        "axes.titley": 1.0,  # where a panel's title stands in any case; to find out takes as long as to draw its ticks
        "savefig.dpi": DPI,
        "legend.fontsize": "small",
        "text.parse_math": False,  # a stored name is no formula
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def looks(rows: pd.DataFrame) -> dict[str, Look]:
    """A look for every implementation, kernels first."""
    names = rows[["implementation", "role"]].drop_duplicates("implementation")
    order = sorted(zip(names["implementation"], names["role"], strict=True), key=lambda one: (one[1] != "kernel", one))
    return {name: look_of(name, role) for name, role in order}


def look_of(name: str, role: str) -> Look:
    """The one look of an implementation, in whatever figure it is drawn."""
    stable = zlib.crc32(name.encode())
    color, marker = LOOKS.get(name, (stable % len(PALETTE), stable // len(PALETTE) % len(MARKERS)))
    dash = "-" if role == "kernel" else DASHES[marker % len(DASHES)]
    return Look(PALETTE[color], MARKERS[marker], dash, role == "kernel")


def sequence_looks(values: Sequence[Any], start: int = 0) -> dict[Any, Look]:
    """A look for every value of a parameter; `start` keeps two kinds of lines in one figure apart."""
    dashes = ("-", *DASHES)
    return {
        value: Look(PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)], dashes[index % len(dashes)], True)
        for index, value in enumerate(values, start)
    }


def quartiles(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Median and quartiles of `y` over the processes at each `x`, sorted by `x`."""
    found = rows.groupby(x)[y].quantile([0.25, 0.5, 0.75]).unstack()
    found.columns = ["low", "middle", "high"]
    return found.sort_index()


def draw_line(ax: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, divide: float = 1.0) -> None:
    """One line: medians over the processes with quartile bars."""
    found = quartiles(rows, x, y) / divide
    bars = [found["middle"] - found["low"], found["high"] - found["middle"]]
    ax.errorbar(found.index, found["middle"], yerr=bars, capsize=2.5, elinewidth=1, **look.line())


def panels(rows: int, columns: int, *, sharex: bool = True, sharey: Any = "row") -> tuple[Figure, list[list[Axes]]]:
    """A grid of panels whose labels and legends make room for each other."""
    figure = Figure(figsize=(WIDTH[columns], PANEL_HEIGHT * rows + 1.3), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    return figure, [list(row) for row in axes]


def finish(
    figure: Figure,
    machine: str,
    what: str,
    label: str,
    shown: Mapping[str, Look | Line2D],
    rows: pd.DataFrame,
    spread: str = "median and quartiles",
) -> Figure:
    """Title with machine and setting, legend below the panels, and a caption with the numbers' origin.

    spread: what is drawn of the processes, for the caption.
    """
    title = "\n".join((what, *textwrap.wrap(f"{machine} · {label}", int(figure.get_figwidth() * 13))))
    return finish_plain(figure, title, shown, caption(rows, spread))


def finish_plain(figure: Figure, title: str, shown: Mapping[str, Look | Line2D], origin: str) -> Figure:
    """Title above, legend and the numbers' origin below."""
    figure.suptitle(title, fontsize="medium")
    handles = [one if isinstance(one, Line2D) else Line2D([], [], **one.line()) for one in shown.values()]
    columns = min(len(shown), max(2, int(figure.get_figwidth() / (1.0 + 0.075 * max(map(len, shown), default=1)))))
    legend = figure.legend(
        handles, list(shown), loc="outside lower center", ncols=columns, handlelength=2.8, frameon=False,
        title="\n".join(textwrap.wrap(origin, int(figure.get_figwidth() * 13))), title_fontsize="small",
    )  # fmt: skip
    legend.get_title().set_color("#555555")
    return figure


def caption(rows: pd.DataFrame, spread: str) -> str:
    """`median and quartiles over 5 processes · torch 2.13.0 · commit 1a2b3c4d`."""
    processes = int(rows.groupby("subject")["process"].nunique().median())
    spread = f"{spread} over {processes} processes" if processes > 1 else "median of one process"
    marks = sorted(set(rows["mark"]))
    commits = f"commit {marks[0]}" if len(marks) == 1 else f"{len(marks)} commits, {marks[0]} to {marks[-1]}"
    return f"{spread} · torch {', '.join(sorted(set(rows['torch'])))} · {commits}"


def metric_axis(ax: Axes, which: str, name: str, values: Sequence[float] = ()) -> None:
    """The axis of a metric as its file declares it; one that records hold and no file declares any more goes by its
    name. values: that a logarithmic axis has to show."""
    metric = load_metrics().get(name)
    if metric is None:
        (ax.xaxis if which == "x" else ax.yaxis).set_label_text(name.replace("_", " "))
    elif metric.axis.scale == "percent":
        percent_axis(ax, which, metric.axis.words)
    else:
        log_axis(ax, which, values, metric.unit, metric.axis.words)


def percent_axis(ax: Axes, which: str, label: str) -> None:
    """An axis of fractions, shown as percent."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(f"{label} (%)")


def log_axis(ax: Axes, which: str, values: Sequence[float], unit: str, label: str) -> None:
    """A logarithmic axis in one human unit where the data span few decades, else with a unit on every tick."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    positive = [float(value) for value in values if value > 0]
    if not positive:
        axis.set_label_text(label)  # zeros have no logarithm
        return
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=2 if unit == "byte" else 10)
    span = max(positive) / min(positive)
    if unit == "byte":
        step = max(1, round(math.log2(span) / 5))
        axis.set_major_locator(LogLocator(base=2.0**step))
    else:
        room = span if which == "y" else 5 * span  # numbers side by side need more of it than on top of each other
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if room < 300 else (1, 3) if room < 3000 else (1,)))
    axis.set_minor_locator(NullLocator())
    if span < 1000:
        divisor, symbol = scale([sorted(positive)[len(positive) // 2]], unit)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:.4g}"))
        axis.set_label_text(f"{label} ({symbol})")
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
        axis.set_label_text(label)


def ratio_axis(ax: Axes, values: Sequence[float], label: str) -> None:
    """A logarithmic y-axis of ratios, ticks such as 1/2x, 1x, 2x (or 0.7x, 1x, 1.5x if they are close), a line at 1."""
    positive = [1.0, *(float(value) for value in values if value > 0)]
    span = max(positive) / min(positive)
    ax.set_yscale("log", base=2)
    if span < 6:
        ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}x"))
    else:
        ax.yaxis.set_major_locator(LogLocator(base=2.0 ** max(1, round(math.log2(span) / 6))))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}x" if v >= 1 else f"1/{1 / v:.4g}x"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.axhline(1, color="black", linewidth=1, zorder=1)
    ax.set_ylabel(label)


def size_axis(ax: Axes, values: Sequence[int], label: str) -> None:
    """A logarithmic x-axis whose ticks are sizes that were measured, as many as have room."""
    ticks = [float(values[-1])]
    for value in reversed(values[:-1]):
        if ticks[0] / value > 1.3:
            ticks.insert(0, float(value))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel(label)


COLOURS = 256
"""Of a PNG's palette: a third of the bytes of full colour, and no difference that an eye sees."""


def save(figure: Figure, path: Path, finding: str = "") -> Path:
    """Write the figure, with the folder that it lies in; the finding goes into a PNG, for whoever shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".png":
        figure.savefig(path)
        return path
    facts = PngInfo()
    facts.add_text("Description", finding)
    figure.set_dpi(DPI)
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if not axis.get_label_text()):
        axis.set_label_coords(0, 0)  # else matplotlib lays all ticks out again to find a place for no words
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True, pnginfo=facts)
    return path
