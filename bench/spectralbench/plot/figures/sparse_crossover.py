"""Where sparse spectra pay off: stored bytes and multiply time over dense, against density (plot P22)."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from spectralbench.plot import Plot
from spectralbench.plot.frame import operation, relative_to_dense, settings
from spectralbench.plot.style import (
    MOST_PAGES,
    Look,
    NotDrawn,
    Page,
    draw_line,
    finish,
    looks,
    panels,
    percent_axis,
    ratio_axis,
)


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Stored bytes and multiply time relative to dense, against density; below 1 a format pays off."""
    rows = operation(frame, ("sparse_multiply",), ("kept_fraction", "beta"))
    drawable = settings(rows, ("implementation", "beta"), ("kept_fraction",))
    if not drawable:
        yield NotDrawn("no sparse_multiply at three or more densities")
    for setting in drawable[:MOST_PAGES]:
        parts = {
            metric: relative_to_dense(setting.rows, metric, ["input", "beta", "process"])
            for metric in ("stored_bytes", "device_time")
            if metric in setting.rows
        }
        parts = {metric: found for metric, found in parts.items() if not found.empty}
        if not parts:
            yield NotDrawn(f"{setting.label}: no dense multiply to compare with")
            continue
        figure, axes = panels(1, len(parts), sharey=False)
        shown: dict[str, Look] = {}
        for ax, (metric, relative) in zip(axes[0], parts.items(), strict=True):
            for name, look in looks(setting.rows).items():
                one = relative[relative["implementation"] == name]
                if not one.empty:
                    draw_line(ax, one, "kept_fraction", "relative", look)
                    shown[name] = look
            words = "stored bytes" if metric == "stored_bytes" else "multiply time"
            ratio_axis(ax, list(relative["relative"]), f"{words} over dense")
            percent_axis(ax, "x", "density: kept coefficients")
            ax.set_title(f"{words} (below 1x it wins)")
        what = "Where sparse spectra pay off"
        finding = _pays(parts)
        yield Page(setting.suffix, finish(figure, machine, what, setting.label, shown, setting.rows), finding)
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings with more points are drawn")


def _pays(parts: dict[str, pd.DataFrame]) -> str:
    """The largest measured density up to which a format is smaller, and up to which one is faster, than dense."""
    words = []
    for metric, relative in parts.items():
        middle = relative.groupby(["implementation", "kept_fraction"])["relative"].median()
        won = middle[middle < 1]
        verb = "smaller" if metric == "stored_bytes" else "faster"
        if won.empty:
            words.append(f"no format is {verb} than dense at any measured density")
        else:
            density = won.index.get_level_values(1).max()
            name = won[won.index.get_level_values(1) == density].idxmin()[0]
            words.append(f"up to a measured density of {100 * density:.2g} % {name} is {verb} than dense")
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}."


FIGURE = Plot(draw)
