"""Approximation error against achieved compression (plot P02): per kernel size, and for lead and top selection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from spectralbench.plot import Plot
from spectralbench.plot.frame import CONVOLUTIONS, operation, settings, spread_over
from spectralbench.plot.style import (
    MOST_PAGES,
    Look,
    NotDrawn,
    Page,
    draw_line,
    finish,
    metric_axis,
    panels,
    sequence_looks,
)

NEEDED = ("achieved_compression", "approximation_error", "compression")
ALONG = ("implementation", "compression", "kernel_size", "selection", "input", "fft_size", "pass", "cache", "launch",
         "grid")  # fmt: skip
SYMMETRIC = "approximation_error_sym"
LEAST_RATES = 4
"""Compressions of a curve: without c = 0, where nothing is lost, three."""


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per setting of the convolution, and one of the lead and top selections; one column per input."""
    selection = operation(frame, ("spectrum_selection",), (*NEEDED, "selection"))
    if selection.empty:
        yield NotDrawn("lead against top: no records of spectrum_selection with an approximation error")
    convolution = operation(frame, CONVOLUTIONS, (*NEEDED, "kernel_size"))
    if convolution.empty:
        yield NotDrawn("no approximation error of a band-limited convolution")
    for index, rows in enumerate((selection, convolution)):
        drawable = settings(rows, ALONG, ("compression",), least=LEAST_RATES)
        for setting in drawable[:MOST_PAGES]:
            suffix = "-".join(part for part in ("convolution" if index else "", setting.suffix) if part)
            by = "kernel_size" if index else "selection"
            yield _page(setting.rows, machine, by, setting.label, suffix)
        for setting in drawable[MOST_PAGES:]:
            yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings with more points are drawn")


def _page(rows: pd.DataFrame, machine: str, by: str, label: str, suffix: str) -> Page:
    # Every exact implementation has the same approximation error, so one grid and one curve per value are enough.
    if "grid" in rows and rows["grid"].nunique() > 1:
        grid = "tight" if "tight" in set(rows["grid"]) else sorted(rows["grid"])[0]
        rows = rows[rows["grid"] == grid]
        label = f"{label}, {grid} grid"
    inputs = sorted(rows["input"].unique())
    values = spread_over(list(rows[by].unique()), 6)
    found = sequence_looks(values)
    finding = _finding(rows, by, values)
    symmetric = SYMMETRIC in rows and by == "selection" and not rows[SYMMETRIC].isna().all()
    figure, axes = panels(1, len(inputs), sharey=True)
    for ax, source in zip(axes[0], inputs, strict=True):
        here = rows[rows["input"] == source]
        for value in values:
            one = here[here[by] == value]
            one = one.groupby("compression")[["achieved_compression", "approximation_error"]].median().reset_index()
            if one.empty:
                continue
            draw_line(ax, one, "achieved_compression", "approximation_error", found[value])
            if symmetric:
                pale = here[here[by] == value].groupby("compression")[["achieved_compression", SYMMETRIC]].median()
                look = Look(found[value].color, found[value].marker, (0, (1, 1.5)), False)
                draw_line(ax, pale, "achieved_compression", SYMMETRIC, look)
        metric_axis(ax, "x", "achieved_compression")
        ax.set_title(f"{source} input" if source else "")
    axes[0][0].set_xlim(left=0)
    axes[0][0].set_ylim(bottom=0)
    metric_axis(axes[0][0], "y", "approximation_error")
    name = "K = {}" if by == "kernel_size" else "{}, |Δ| / |reference|"
    shown: dict[str, Look | Line2D] = {name.format(value): look for value, look in found.items()}
    if symmetric:
        for value, look in found.items():
            shown[f"{value}, |Δ| / (|got| + |reference|)"] = Look(look.color, look.marker, (0, (1, 1.5)), False)
    return Page(suffix, finish(figure, machine, "Error against compression", label, shown, rows, "median"), finding)


def _finding(rows: pd.DataFrame, by: str, values: list[Any]) -> str:
    """The error at the compression nearest to a half, for the first and the last line."""
    middle = min(rows["compression"].unique(), key=lambda rate: abs(rate - 0.5))
    here = rows[rows["compression"] == middle].groupby([by, "input"])["approximation_error"].median()
    parts = []
    for value in dict.fromkeys((values[0], values[-1])):
        own = here[here.index.get_level_values(0) == value]
        if len(own):
            low, high = 100 * own.min(), 100 * own.max()
            span = f"{low:.2g} %" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g} %"
            parts.append(f"{f'K = {value}' if by == 'kernel_size' else value} costs {span}")
    return f"At c = {middle:g}, before retraining, {' and '.join(parts)} of the answer's norm."


FIGURE = Plot(draw)
