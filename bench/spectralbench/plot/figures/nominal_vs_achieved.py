"""Nominal against achieved compression (plot P33): a mask has whole rows and columns, so small maps overshoot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from spectralbench.plot import Plot
from spectralbench.plot.frame import TIMES, operation, spread_over
from spectralbench.plot.style import (
    LEAST_POINTS,
    NotDrawn,
    Page,
    draw_line,
    finish,
    metric_axis,
    panels,
    percent_axis,
    sequence_looks,
)

OPERATIONS = ("band_limited_conv2d", "masked_multiply")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Achieved against nominal compression, and their difference; one line per FFT size."""
    rows = operation(frame, OPERATIONS, ("achieved_compression", "compression"))
    if rows.empty or rows["compression"].nunique() < LEAST_POINTS:
        yield NotDrawn("no achieved compression at three or more nominal ones")
        return
    rows = rows.assign(excess=rows["achieved_compression"] - rows["compression"])
    rates = rows.groupby("fft_size")["compression"].nunique()
    sizes = sorted(rates[rates >= LEAST_POINTS].index, key=lambda text: [int(part) for part in text.split("x") if part])
    order = {size: index for index, size in enumerate(sizes)}
    drawn = [sizes[index] for index in spread_over(list(order.values()), 8)]
    found = sequence_looks(drawn)
    figure, axes = panels(1, 2, sharey=False)
    left, right = axes[0]
    for size, look in found.items():
        one = rows[rows["fft_size"] == size]
        # Whole rows and columns are dropped: between two points there are steps, which no line may pretend away.
        points = replace(look, dash="none")
        draw_line(left, one, "compression", "achieved_compression", points)
        draw_line(right, one, "compression", "excess", points)
    left.axline((0, 0), slope=1, color="black", linewidth=1, zorder=1)
    right.axhline(0, color="black", linewidth=1, zorder=1)
    for ax in (left, right):
        percent_axis(ax, "x", "nominal compression")
    metric_axis(left, "y", "achieved_compression")
    percent_axis(right, "y", "achieved minus nominal")
    right.set_ylabel("achieved minus nominal\n(percentage points)")
    left.set_title("achieved (black: as asked)")
    right.set_title("difference")
    shown = {f"N = {size.replace('x', TIMES)}": replace(look, dash="none") for size, look in found.items()}
    label = " and ".join(sorted(rows["operation"].unique()))
    worst = rows.loc[rows["excess"].idxmax()]
    finding = (
        f"More is dropped than asked for, at most {100 * worst['excess']:.2g} points: at N = {worst['fft_size']} a "
        f"nominal c of {worst['compression']:g} drops {100 * worst['achieved_compression']:.3g} %."
    )
    yield Page("", finish(figure, machine, "Nominal and achieved compression", label, shown, rows, "median"), finding)
    if len(drawn) < len(sizes):
        yield NotDrawn(f"{len(sizes) - len(drawn)} of {len(sizes)} FFT sizes: 8 lines are the most one can tell apart")


FIGURE = Plot(draw)
