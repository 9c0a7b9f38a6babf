"""Threshold sparsity: kept fraction and stored bytes against beta (plots P18 and P20)."""

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
    metric_axis,
    panels,
    ratio_axis,
    sequence_looks,
)

ALONG = ("implementation", "beta", "input")


def draw(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Kept fraction against beta, one line per input; then stored bytes relative to dense, one panel per input."""
    rows = operation(frame, ("threshold_spectrum",), ("beta", "kept_fraction"))
    drawable = settings(rows, ALONG, ("beta",))
    if not drawable:
        yield NotDrawn("no kept fraction of threshold_spectrum at three or more values of beta")
    for setting in drawable[:MOST_PAGES]:
        rows = setting.rows
        relative = relative_to_dense(rows, "stored_bytes", ["input", "beta"])
        if relative.empty:
            yield NotDrawn(f"bytes against beta, {setting.label}: no stored_bytes of a dense implementation")
        inputs = sorted(rows["input"].unique())
        count = 1 + (len(inputs) if len(relative) else 0)
        columns = count if count <= 3 else 2
        figure, grid = panels(-(-count // columns), columns, sharex=False, sharey=False)
        first, *others = [ax for row in grid for ax in row]
        for ax in others[count - 1 :]:
            ax.remove()
        shown: dict[str, Look] = {}
        for source, look in sequence_looks(inputs, start=5).items():
            kept = rows[rows["input"] == source]
            draw_line(first, kept, "beta", "kept_fraction", look)
            shown[f"{source} input".strip()] = look
        scaled = "beta (times the map's rms)" if _is_relative(rows) else "beta (magnitude)"
        metric_axis(first, "y", "kept_fraction")
        first.set_ylim(bottom=0)
        first.set_title("kept fraction")
        first.set_xlabel(scaled)
        formats = looks(rows)
        for ax, source in zip(others, inputs, strict=False):
            for name, look in formats.items():
                one = relative[(relative["input"] == source) & (relative["implementation"] == name)]
                if not one.empty:
                    draw_line(ax, one, "beta", "relative", look)
                    shown[name] = look
            ratio_axis(ax, list(relative["relative"]), "bytes over dense")
            ax.set_ylim(relative["relative"].min() / 1.3, max(relative["relative"].max(), 1.0) * 1.3)
            ax.set_title(f"bytes, {source} input" if source else "bytes")
            ax.set_xlabel(scaled)
        what = "Kept fraction and stored bytes against beta"
        finding = _smallest(relative, "beta")
        yield Page(setting.suffix, finish(figure, machine, what, setting.label, shown, rows), finding)
    for setting in drawable[MOST_PAGES:]:
        yield NotDrawn(f"{setting.label}: {MOST_PAGES} settings with more points are drawn")


def _smallest(relative: pd.DataFrame, along: str) -> str:
    if relative.empty:
        return "Kept coefficients against beta."
    middle = relative.groupby(["implementation", along])["relative"].median()
    name, place = middle.idxmin()
    first = middle[middle < 1].groupby("implementation").apply(lambda own: own.index.get_level_values(1).min())
    best = first.idxmin() if len(first) else None
    begins = (
        f"{best} is smaller than dense from beta = {first[best]:g} on" if best else "no format is smaller than dense"
    )
    return f"{begins}; at beta = {place:g} {name} takes {100 * middle.min():.2g} % of its bytes."


def _is_relative(rows: pd.DataFrame) -> bool:
    return "relative" in rows and bool(rows["relative"].astype(bool).all())


FIGURE = Plot(draw)
