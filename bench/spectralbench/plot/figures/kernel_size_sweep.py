"""Time against kernel size, and speed-up over the library convolution in its best layout (plot P16)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from spectralbench import rivals
from spectralbench.plot import Plot
from spectralbench.plot.frame import (
    CONVOLUTIONS,
    DrawnSetting,
    best_of_families,
    one_commit,
    operation,
    settings,
    spread_over,
)
from spectralbench.plot.style import (
    MOST_PAGES,
    Look,
    NotDrawn,
    Page,
    draw_line,
    finish,
    look_of,
    metric_axis,
    panels,
    quartiles,
    ratio_axis,
    size_axis,
)
from spectralbench.quantity import ratio_words

CONV = rivals.WORDS["conv"]
SPREAD = "speed-ups within a process, each line of one commit: median and quartiles"
ALONG = ("implementation", "kernel_size", "compression", "grid", "fft_size")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per setting: time above, speed-up below, one column per compression."""
    rows = operation(frame, CONVOLUTIONS, ("device_time", "kernel_size", "compression"))
    drawable = settings(rows, ALONG, ("kernel_size",))
    if not drawable:
        yield NotDrawn("no times of a band-limited convolution at three or more kernel sizes")
    for setting in drawable[:MOST_PAGES]:
        yield from _page(setting, machine)
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings with more points are drawn")


def _page(setting: DrawnSetting, machine: str) -> Iterator[Page | NotDrawn]:
    whole, label = best_of_families(setting.rows), setting.label
    rows = one_commit(whole, ("implementation", "compression"), "kernel_size")
    plain = rows["implementation"] == CONV
    direct = rows[plain]
    sizes = sorted(rows["kernel_size"].unique())
    measured = rows[~plain].groupby("compression")["kernel_size"].nunique()
    curves = list(measured[measured > 2].index)
    if not curves:
        yield NotDrawn(f"{label}: no compression was measured at three or more kernel sizes")
        return
    compressions = spread_over(curves, 3)
    figure, axes = panels(1 if direct.empty else 2, len(compressions))
    roles = dict(zip(rows["implementation"], rows["role"], strict=True))
    shown: dict[str, Look] = {}
    every: list[float] = []
    ratios: list[float] = []
    fastest: list[tuple[float, str, float, float]] = []
    for column, compression in enumerate(compressions):
        here = rows[rows["compression"] == compression]
        base = whole[(whole["implementation"] == CONV) & (whole["compression"] == compression)]
        for name in sorted(roles, key=lambda one: (roles[one] != "kernel", one)):
            line = here[here["implementation"] == name]
            if line["kernel_size"].nunique() < 3:
                continue
            shown[name] = look_of(name, roles[name])
            draw_line(axes[0][column], line, "kernel_size", "device_time", shown[name])
            every += list(line["device_time"])
            if name != CONV and not base.empty:
                faster = _speedup(line, base)
                ratios += list(faster["speedup"])
                if not faster.empty:
                    draw_line(axes[1][column], faster, "kernel_size", "speedup", shown[name])
                    middle = quartiles(faster, "kernel_size", "speedup")["middle"]
                    if roles[name] == "kernel":
                        fastest += [(value, name, size, compression) for size, value in middle.items()]
        axes[0][column].set_title(f"c = {compression:g}")
        size_axis(axes[-1][column], sizes, "kernel size K (cells)")
    for row in axes:
        for ax in row[1:]:
            ax.tick_params(labelleft=False)
    metric_axis(axes[0][0], "y", "device_time", every)
    if ratios:
        for ax in axes[1]:
            ratio_axis(ax, ratios, "")
        axes[1][0].set_ylabel(f"speed-up over {CONV}\n(up is faster)")
    finding = _finding(fastest)
    yield Page(setting.suffix, finish(figure, machine, "Time against kernel size", label, shown, rows, SPREAD), finding)
    if direct.empty:
        yield NotDrawn(f"speed-up panel of {label}: no direct convolution was measured")


def _finding(found: list[tuple[float, str, float, float]]) -> str:
    if not found:
        return "Time against kernel size; no library convolution was measured beside it."
    best, worst = max(found), min(found)
    return (
        f"Against the torch convolution in its best measured layout {best[1]} is at best "
        f"{ratio_words(1 / best[0], 'second')}, at K = {best[2]:g} and c = {best[3]:g}; {worst[1]} is at worst "
        f"{ratio_words(1 / worst[0], 'second')}, at K = {worst[2]:g} and c = {worst[3]:g}."
    )


def _speedup(line: pd.DataFrame, direct: pd.DataFrame) -> pd.DataFrame:
    """Direct time over this time, process by process where both ran in the same one, else over the median."""
    keys: list[Any] = ["kernel_size", "process"]
    base = direct.groupby(keys)["device_time"].median().rename("base")
    paired = line.join(base, on=keys).dropna(subset=["base"])
    if paired.empty:
        middle = quartiles(direct, "kernel_size", "device_time")["middle"].rename("base")
        paired = line.join(middle, on="kernel_size").dropna(subset=["base"])
    return paired.assign(speedup=paired["base"] / paired["device_time"])


FIGURE = Plot(draw, "every commit")
