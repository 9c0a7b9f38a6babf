"""Threshold sparsity: kept fraction and bytes against beta (P18, P20), and where sparse formats pay off (P22)."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from spectralbench.plot.frame import operation, settings
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
    sequence_looks,
)

ALONG = ("implementation", "beta", "input")


def draw_kept(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Kept fraction against beta, one line per input; then stored bytes relative to dense, one panel per input."""
    rows = operation(frame, ("threshold_spectrum",), ("beta", "kept_fraction"))
    drawable = settings(rows, ALONG, ("beta",))
    if not drawable:
        yield NotDrawn("no kept fraction of threshold_spectrum at three or more values of beta")
    for setting in drawable[:MOST_PAGES]:
        rows = setting.rows
        relative = _relative_to_dense(rows, "stored_bytes", ["input", "beta"])
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
        percent_axis(first, "y", "kept coefficients")
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


def draw_crossover(frame: pd.DataFrame, machine: str) -> Iterator[Page | NotDrawn]:
    """Stored bytes and multiply time relative to dense, against density; below 1 a format pays off."""
    rows = operation(frame, ("sparse_multiply",), ("kept_fraction", "beta"))
    drawable = settings(rows, ("implementation", "beta"), ("kept_fraction",))
    if not drawable:
        yield NotDrawn("no sparse_multiply at three or more densities")
    for setting in drawable[:MOST_PAGES]:
        parts = {
            metric: _relative_to_dense(setting.rows, metric, ["input", "beta", "process"])
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


def _relative_to_dense(rows: pd.DataFrame, metric: str, keys: list[str]) -> pd.DataFrame:
    """The sparse rows with a column `relative`: the metric over that of the dense implementation of the same case."""
    if metric not in rows or rows[metric].isna().all():
        return rows.iloc[0:0]
    dense = rows[rows["implementation"].str.contains("dense")].groupby(keys)[metric].median().rename("of_dense")
    paired = rows.join(dense, on=keys).dropna(subset=["of_dense", metric])
    paired = paired.assign(relative=paired[metric] / paired["of_dense"])
    return paired[~paired["implementation"].str.contains("dense")]


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


def _is_relative(rows: pd.DataFrame) -> bool:
    return "relative" in rows and bool(rows["relative"].astype(bool).all())
