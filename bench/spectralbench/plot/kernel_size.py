"""Time against kernel size, and speed-up over direct convolution (plot P16)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from spectralbench.plot.frame import Setting, operation, settings, spread_over
from spectralbench.plot.style import (
    MOST_PAGES,
    Look,
    NotDrawn,
    Page,
    draw_line,
    finish,
    log_axis,
    looks,
    panels,
    quartiles,
    ratio_axis,
    size_axis,
)

OPERATIONS = ("band_limited_conv2d", "band_limited_conv1d")
DIRECT = "direct (uncompressed)"
ALONG = ("implementation", "kernel_size", "compression", "grid", "fft_size")


def is_direct(name: str) -> bool:
    """Whether an implementation is the plain spatial convolution, which users have today."""
    return name in ("direct", "direct_uncompressed")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per setting: time above, speed-up below, one column per compression."""
    rows = operation(frame, OPERATIONS, ("device_time", "kernel_size", "compression"))
    rows = rows.assign(implementation=rows["implementation"].mask(rows["implementation"].map(is_direct), DIRECT))
    drawable = settings(rows, ALONG, ("kernel_size",))
    if not drawable:
        yield NotDrawn("no times of a band-limited convolution at two or more kernel sizes")
    all_looks = looks(rows) if drawable else {}
    for setting in drawable[:MOST_PAGES]:
        yield from _page(setting, machine, all_looks)
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings with more points are drawn")


def _page(setting: Setting, machine: str, all_looks: dict[str, Look]) -> Iterator[Page | NotDrawn]:
    rows, grids = setting.rows, sorted(setting.rows["grid"].unique()) if "grid" in setting.rows else []
    label = setting.label
    if len(grids) > 1:
        grid = "tight" if "tight" in grids else grids[0]
        rows = rows[(rows["grid"] == grid) | (rows["implementation"] == DIRECT)]
        label = f"{label}, {grid} grid"
    plain = rows["implementation"] == DIRECT
    direct = rows[plain]
    sizes = sorted(rows["kernel_size"].unique())
    measured = rows[~plain].groupby("compression")["kernel_size"].nunique()
    curves = list(measured[measured > 1].index)
    if not curves:
        yield NotDrawn(f"{label}: no compression was measured at two or more kernel sizes")
        return
    compressions = spread_over(curves, 3)
    figure, axes = panels(1 if direct.empty else 2, len(compressions))
    shown: dict[str, Look] = {}
    every: list[float] = []
    ratios: list[float] = []
    for column, compression in enumerate(compressions):
        here = rows[rows["compression"] == compression]
        base = here[here["implementation"] == DIRECT]
        for name, look in all_looks.items():
            line = here[here["implementation"] == name]
            if line.empty:
                continue
            shown[name] = look
            draw_line(axes[0][column], line, "kernel_size", "device_time", look)
            every += list(line["device_time"])
            if name != DIRECT and not base.empty:
                faster = _speedup(line, base)
                ratios += list(faster["speedup"])
                if not faster.empty:
                    draw_line(axes[1][column], faster, "kernel_size", "speedup", look)
        axes[0][column].set_title(f"compression {compression:g}")
        size_axis(axes[-1][column], sizes, "kernel size K (cells)")
    for row in axes:
        for ax in row[1:]:
            ax.tick_params(labelleft=False)
    log_axis(axes[0][0], "y", every, "second", "time per call")
    if ratios:
        for ax in axes[1]:
            ratio_axis(ax, ratios, "")
        axes[1][0].set_ylabel("speed-up over direct\nconvolution (up is faster)")
    yield Page(setting.suffix, finish(figure, machine, "Time against kernel size", label, shown, rows))
    if direct.empty:
        yield NotDrawn(f"speed-up panel of {label}: no direct convolution was measured")


def _speedup(line: pd.DataFrame, direct: pd.DataFrame) -> pd.DataFrame:
    """Direct time over this time, process by process where both ran in the same one, else over the median."""
    keys: list[Any] = ["kernel_size", "process"]
    base = direct.groupby(keys)["device_time"].median().rename("base")
    paired = line.join(base, on=keys).dropna(subset=["base"])
    if paired.empty:
        middle = quartiles(direct, "kernel_size", "device_time")["middle"].rename("base")
        paired = line.join(middle, on="kernel_size").dropna(subset=["base"])
    return paired.assign(speedup=paired["base"] / paired["device_time"])
