"""Time, memory and error of every way to compute one case: which choices are not beaten in all three?"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from spectralbench.plot.frame import Setting, operation, settings, spread_over
from spectralbench.plot.kernel_size import OPERATIONS
from spectralbench.plot.style import MARKERS, MOST_PAGES, Look, NotDrawn, Page, finish, log_axis, looks, panels

ALONG = ("implementation", "compression", "kernel_size", "grid", "fft_size")
MEMORIES = ("saved_bytes", "peak_allocated", "host_peak")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per setting, a panel per kernel size; both passes first, because saved bytes are what training pays."""
    memory = next((name for name in MEMORIES if len(operation(frame, OPERATIONS, ("device_time", name)))), None)
    if memory is None:
        yield NotDrawn("no case of a band-limited convolution has both a time and a memory")
        return
    rows = operation(frame, OPERATIONS, ("device_time", memory, "approximation_error", "kernel_size", "compression"))
    # A rival has the same time at every compression; `direct` stands for it at compression 0.
    rows = rows[rows["role"] != "rival"]
    drawable = settings(rows, ALONG, ("implementation",), first=("pass", "both"))
    if not drawable:
        yield NotDrawn(f"no case with time, {memory} and approximation error of two or more implementations")
    for setting in drawable[:MOST_PAGES]:
        yield _page(setting, machine, memory, looks(rows))
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings are drawn")


def undominated(points: pd.DataFrame, costs: list[str]) -> pd.Series:
    """True where no other point is at least as good in every cost and better in one."""
    values = points[costs].to_numpy()
    beaten = [bool(((values <= one).all(axis=1) & (values < one).any(axis=1)).any()) for one in values]
    return ~pd.Series(beaten, index=points.index, dtype=bool)


def _page(setting: Setting, machine: str, memory: str, all_looks: dict[str, Look]) -> Page:
    sizes = spread_over(list(setting.rows["kernel_size"].unique()), 3)
    rows = setting.rows[setting.rows["kernel_size"].isin(sizes)]
    costs = ["device_time", memory, "approximation_error"]
    keys = ["kernel_size", "implementation", "compression", "subject"]
    points = rows.groupby(keys)[costs].median().reset_index()
    colors, shades = colormaps["cividis"], Normalize(0, max(points["approximation_error"].max(), 1e-12))
    figure, axes = panels(1, len(sizes), sharex=True, sharey=True)
    present = [name for name in all_looks if name in set(points["implementation"])]
    marks = {name: MARKERS[list(all_looks).index(name) % len(MARKERS)] for name in present}
    for ax, size in zip(axes[0], sizes, strict=True):
        here = points[points["kernel_size"] == size]
        best = undominated(here, costs)
        for name in present:
            one = here[here["implementation"] == name].sort_values("compression")
            front = one[best[one.index]]
            ax.plot(front["device_time"], front[memory], color="black", linewidth=1, zorder=1)
            edge = ["black" if best[index] else "#AAAAAA" for index in one.index]
            width = [1.4 if best[index] else 0.6 for index in one.index]
            ax.scatter(
                one["device_time"], one[memory], c=colors(shades(one["approximation_error"])), marker=marks[name],
                s=48, edgecolors=edge, linewidths=width, zorder=3,
            )  # fmt: skip
        ax.set_title(f"K = {size}")
        log_axis(ax, "x", list(points["device_time"]), "second", "time per call")
    log_axis(axes[0][0], "y", list(points[memory]), "byte", memory.replace("_", " "))
    bar = figure.colorbar(ScalarMappable(shades, colors), ax=axes[0][-1], pad=0.02)
    bar.set_label("approximation error (%)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    shown: dict[str, Look | Line2D] = {
        name: Line2D([], [], marker=marks[name], linestyle="none", color="#555555") for name in present
    }
    shown["not beaten in all three"] = Line2D(
        [], [], marker="o", linestyle="none", color="white", markeredgecolor="black"
    )
    shown["the same, joined by compression"] = Line2D([], [], color="black", linewidth=1)
    return Page(setting.suffix, finish(figure, machine, "Time, memory and error", setting.label, shown, rows, "median"))
