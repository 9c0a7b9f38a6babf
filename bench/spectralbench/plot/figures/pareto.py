"""Time, memory and error of every way to compute one case: which choices are not beaten in all three?

Memory is what a layer behind a ReLU keeps for backward: the library convolution keeps the map that the ReLU has kept
already, a band-limited one its spectrum on top of that map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from spectralbench import names, rivals
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
from spectralbench.plot.style import MOST_PAGES, Look, NotDrawn, Page, finish, log_axis, look_of, metric_axis, panels

ALONG = ("implementation", "compression", "kernel_size", "grid", "fft_size")
NEEDED = ("device_time", "saved_bytes", "approximation_error", "kernel_size", "compression")
COSTS = ["device_time", "kept_bytes", "approximation_error"]
LEAST_ERROR = 1e-4
"""A figure whose worst answer is nearer than this to the uncompressed one has no price to show."""


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per setting, a panel per kernel size; both passes first, because kept bytes are what training pays."""
    rows = operation(frame, CONVOLUTIONS, NEEDED)
    if rows.empty:
        yield NotDrawn("no case of a band-limited convolution has both a time and a memory")
        return
    rows = rows.assign(kept_bytes=rows["saved_bytes"] + _map_bytes(rows))
    rows.attrs["metrics"] = (*rows.attrs["metrics"], "kept_bytes")
    every = settings(rows, ALONG, ("implementation",), first=("pass", "both"))
    sittings = [replace(one, rows=one_commit(best_of_families(one.rows), (), "subject")) for one in every]
    drawable = [one for one in sittings if one.rows["approximation_error"].max() >= LEAST_ERROR]
    if not drawable:
        yield NotDrawn("no case with time, saved bytes and an approximation error of three or more implementations")
    for index, setting in enumerate(drawable[:MOST_PAGES]):
        yield _page(setting, machine, setting.suffix if index else "")
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings are drawn")


def _map_bytes(rows: pd.DataFrame) -> pd.Series:
    """The map that a ReLU in front keeps anyway, for those who do not keep that very map."""
    size = rows["dtype"].map({"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}).fillna(0)
    for name in ("batch", "in_channels", "height", "width", "length"):
        if name in rows:
            size = size * rows[name].fillna(1)
    return size.where(~rows["implementation"].isin(rivals.CONV), 0)


def undominated(points: pd.DataFrame, costs: list[str]) -> pd.Series:
    """True where no other point is at least as good in every cost and better in one."""
    values = points[costs].to_numpy()
    beaten = [bool(((values <= one).all(axis=1) & (values < one).any(axis=1)).any()) for one in values]
    return ~pd.Series(beaten, index=points.index, dtype=bool)


def _page(setting: DrawnSetting, machine: str, suffix: str) -> Page:
    sizes = spread_over(list(setting.rows["kernel_size"].unique()), 3)
    rows = setting.rows[setting.rows["kernel_size"].isin(sizes)]
    # A rival gives the uncompressed answer, whatever is dropped beside it: its error is none, its c is 0.
    rival = rows["role"] == "rival"
    rows = rows.assign(
        approximation_error=rows["approximation_error"].where(~rival, 0.0),
        compression=rows["compression"].where(~rival, 0.0),
    )
    keys = ["kernel_size", "implementation", "compression"]
    points = rows.groupby(keys)[COSTS].median().reset_index()
    colors, shades = colormaps["cividis"], Normalize(0, max(points["approximation_error"].max(), 1e-12))
    figure, axes = panels(1, len(sizes), sharex=True, sharey=True)
    roles = dict(zip(rows["implementation"], rows["role"], strict=True))
    marks = {name: look_of(name, role).marker for name, role in roles.items()}
    unbeaten: dict[str, int] = dict.fromkeys(roles, 0)
    for ax, size in zip(axes[0], sizes, strict=True):
        here = points[points["kernel_size"] == size]
        best = undominated(here, COSTS)
        for name in roles:
            one = here[here["implementation"] == name].sort_values("compression")
            unbeaten[name] += int(best[one.index].sum())
            ax.plot(one["device_time"], one["kept_bytes"], color="#BBBBBB", linewidth=1, zorder=1)
            edge = ["black" if best[index] else "#AAAAAA" for index in one.index]
            width = [1.4 if best[index] else 0.6 for index in one.index]
            ax.scatter(
                one["device_time"], one["kept_bytes"], c=colors(shades(one["approximation_error"])),
                marker=marks[name], s=40, edgecolors=edge, linewidths=width, zorder=3,
            )  # fmt: skip
            # To either side in turn: points of one implementation lie along a line that rises.
            for turn, (_, point) in enumerate(one.iterrows(), start=int(roles[name] == "rival")):
                place = (point["device_time"], point["kept_bytes"])
                across, side, up = ((5, "left", "top"), (-5, "right", "bottom"))[turn % 2]
                ax.annotate(f"c{names.number(point['compression'])}", place, xytext=(across, -across / 2),
                            ha=side, va=up, textcoords="offset points", fontsize="xx-small",
                            color="#555555")  # fmt: skip
        ax.set_title(f"K = {size}")
        metric_axis(ax, "x", "device_time", list(points["device_time"]))
    log_axis(axes[0][0], "y", list(points["kept_bytes"]), "byte", "kept behind a ReLU")
    bar = figure.colorbar(ScalarMappable(shades, colors), ax=axes[0][-1], pad=0.02)
    bar.set_label("error (%)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    shown: dict[str, Look | Line2D] = {
        f"{name} †" if role == "rival" else name: Line2D([], [], marker=marks[name], linestyle="none", color="#555555")
        for name, role in roles.items()
    }
    shown["in no cost beaten by one as good in the others"] = Line2D(
        [], [], marker="o", linestyle="none", color="white", markeredgecolor="black"
    )
    told = ", ".join(f"{name} in {count}" for name, count in unbeaten.items() if count)
    finding = f"Not beaten in time, memory and error at once: {told} of {len(points)} points."
    title = "Time, memory and error"
    return Page(suffix, finish(figure, machine, title, setting.label, shown, rows, "median"), finding)


FIGURE = Plot(draw, "every commit")
