"""Nominal against achieved compression (plot P33): a mask has whole rows and columns, so small maps overshoot."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from spectralbench.plot.frame import TIMES, operation, spread_over
from spectralbench.plot.style import NotDrawn, Page, draw_line, finish, panels, percent_axis, sequence_looks

OPERATIONS = ("band_limited_conv2d", "masked_multiply")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Achieved against nominal compression, and their difference; one line per FFT size."""
    rows = operation(frame, OPERATIONS, ("achieved_compression", "compression"))
    if rows.empty or rows["compression"].nunique() < 2:
        yield NotDrawn("no achieved compression at two or more nominal ones")
        return
    rows = rows.assign(excess=rows["achieved_compression"] - rows["compression"])
    rates = rows.groupby("fft_size")["compression"].nunique()
    sizes = sorted(rates[rates > 1].index, key=lambda text: [int(part) for part in text.split("x") if part])
    order = {size: index for index, size in enumerate(sizes)}
    drawn = [sizes[index] for index in spread_over(list(order.values()), 8)]
    found = sequence_looks(drawn)
    figure, axes = panels(1, 2, sharey=False)
    left, right = axes[0]
    for size, look in found.items():
        one = rows[rows["fft_size"] == size]
        draw_line(left, one, "compression", "achieved_compression", look)
        draw_line(right, one, "compression", "excess", look)
    left.axline((0, 0), slope=1, color="black", linewidth=1, zorder=1)
    right.axhline(0, color="black", linewidth=1, zorder=1)
    for ax in (left, right):
        percent_axis(ax, "x", "nominal compression")
    percent_axis(left, "y", "achieved compression")
    percent_axis(right, "y", "achieved minus nominal")
    right.set_ylabel("achieved minus nominal\n(percentage points)")
    left.set_title("achieved (black: as asked)")
    right.set_title("difference")
    shown = {f"N = {size.replace('x', TIMES)}": look for size, look in found.items()}
    label = " and ".join(sorted(rows["operation"].unique()))
    yield Page("", finish(figure, machine, "Nominal and achieved compression", label, shown, rows, "median"))
    if len(drawn) < len(sizes):
        yield NotDrawn(f"{len(sizes) - len(drawn)} of {len(sizes)} FFT sizes: 8 lines are the most one can tell apart")
