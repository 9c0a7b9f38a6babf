"""The smallest change of its newest time that the alert could show of every series: what it would miss is below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from spectralbench import names
from spectralbench.alert import Finding
from spectralbench.history import History
from spectralbench.plot import Plot
from spectralbench.plot.style import WIDTH, NotDrawn, Page, finish_plain

LEAST, MOST = 0.01, 3.0
"""Ends of the colours: 1 % and four times as slow."""
WRITTEN = 24
"""Columns up to which the percent stands in its place."""


def draw(judged: tuple[History, Sequence[Finding]], machine: str) -> Iterator[Page | NotDrawn]:
    """A row per implementation, a column per case, operation by operation; white is what was not judged."""
    history, findings = judged
    seen = {
        finding.key: finding.resolution
        for finding in findings
        if finding.key.metric == "device_time" and finding.resolution is not None
    }
    known = {one.key: one for one in history.series}
    cases: dict[tuple[str, str, str], None] = {}
    rows: dict[str, str] = {}
    cells: dict[tuple[str, tuple[str, str, str]], float] = {}
    for key, resolution in seen.items():
        if key not in known:  # a geometric mean of several series
            continue
        subject = key.subject
        case = (subject.operation, f"{subject.case} {subject.dtype} {subject.fft_size}", subject.pass_)
        cases[case] = None
        rows[subject.implementation] = known[key].role
        cells[subject.implementation, case] = resolution
    if not cells:
        yield NotDrawn("no series of times has points enough for the alert to judge")
        return
    columns = sorted(cases)
    order = sorted(rows, key=lambda name: (rows[name] == "rival", rows[name] != "kernel", name))
    found = np.array([[cells.get((name, case), math.nan) for case in columns] for name in order])
    figure = Figure(figsize=(WIDTH[3], max(3.8, 0.22 * len(order) + 2.2)), layout="constrained")
    ax = figure.subplots()
    norm = LogNorm(LEAST, MOST)
    ax.imshow(np.clip(found, LEAST, MOST), cmap="cividis_r", norm=norm, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(found) if len(columns) <= WRITTEN else ():
        if not math.isnan(value):
            ink = "white" if norm(value) > 0.45 else "black"
            told = f"{float(format(100 * value, '.2g')):g}"  # two digits, and no power of ten
            ax.text(column, row, told, ha="center", va="center", color=ink, fontsize="x-small")
    ax.set_yticks(range(len(order)), order, fontsize="x-small")
    operations = [case[0] for case in columns]
    starts = [index for index, name in enumerate(operations) if index == 0 or operations[index - 1] != name]
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="#D55E00", linewidth=1)
    ax.set_xticks(starts, [names.operation(operations[start]) for start in starts], rotation=30, ha="right")
    ax.set_xlabel(f"{len(columns)} cases, by operation")
    ax.grid(visible=False)
    bar = figure.colorbar(ScalarMappable(norm, "cividis_r"), ax=ax, pad=0.02)
    bar.ax.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1.0, 3.0]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    bar.set_label("smallest change that shows")
    values = sorted(cells.values())
    words = f"percent of the time · white: not judged, or not measured · {len(values)} series of times"
    title = f"What the alert could show of the newest commit\n{machine}"
    half, best = math.ceil(100 * median(values)), math.ceil(100 * values[0])
    finding = f"Half of {len(values)} series of times would show a change of {half} %, the best one of {best} %."
    yield Page("", finish_plain(figure, title, {}, words), finding)


FIGURE = Plot(draw, "judged")
