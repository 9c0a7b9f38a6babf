"""The history of series over commits with the band in which the alert stays silent (plot P32)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.ticker import FuncFormatter

from spectralbench import names
from spectralbench.alert import Finding
from spectralbench.contest import title
from spectralbench.history import History, Key, Series
from spectralbench.plot import Plot
from spectralbench.plot.style import LEAST_POINTS, NotDrawn, Page, finish_plain, look_of, panels
from spectralbench.quantity import scale

SHOWN = 4


def draw(judged: tuple[History, Sequence[Finding]], machine: str) -> Iterator[Page | NotDrawn]:
    """The kernels' series with the most commits, a panel each."""
    history, found = judged
    series = [one for one in history.series if one.key.metric == "device_time" and len(one.points) >= LEAST_POINTS]
    kernels = sorted((one for one in series if one.role == "kernel"), key=lambda one: -len(one.points))
    if not kernels:
        yield NotDrawn("no kernel was timed at three or more commits")
        return
    findings = {finding.key: finding for finding in found}
    chosen = _spread(kernels)
    figure, axes = panels(-(-len(chosen) // 2), min(2, len(chosen)), sharex=False, sharey=False)
    every = [ax for row in axes for ax in row]
    for ax in every[len(chosen) :]:
        ax.remove()
    shown = {}
    for ax, one in zip(every, chosen, strict=False):
        name = one.key.subject.implementation
        shown[name] = look = look_of(name, one.role)
        divisor, symbol = scale([point.value for point in one.points], "second")
        places = range(len(one.points))
        middle = [point.value / divisor for point in one.points]
        low = [(point.value - point.q25) / divisor for point in one.points]
        high = [(point.q75 - point.value) / divisor for point in one.points]
        ax.errorbar(places, middle, yerr=[low, high], capsize=2.5, elinewidth=1, **look.line())
        finding = findings.get(one.key)
        if finding is not None and finding.old is not None and finding.resolution is not None:
            level, reach = finding.old / divisor, 1 + finding.resolution
            ax.axhspan(level / reach, level * reach, color="#999999", alpha=0.25, zorder=0)
        ax.set_xticks(places, [point.mark for point in one.points], rotation=45, ha="right", fontsize="x-small")
        facts = {**one.params, "pass": one.key.subject.pass_}
        ax.set_title(title(facts, one.key.subject.operation), fontsize="small")
        ax.set_ylabel(f"time ({symbol})")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    words = "quartiles over processes · grey: changes of the newest commit that the alert could not show"
    what = "The longest histories, and what the alert can see"
    yield Page("", finish_plain(figure, f"{what}\n{machine}", shown, words), _finding(chosen, findings))


def _spread(kernels: list[Series]) -> list[Series]:
    """The longest ones, of different cases and no more than half of them of one operation."""
    chosen: dict[str, Series] = {}
    of_operation: Counter[str] = Counter()
    for one in kernels:
        operation, case = one.key.subject.operation, names.short(one.params)
        if case not in chosen and of_operation[operation] < SHOWN // 2:
            chosen[case] = one
            of_operation[operation] += 1
    return list(chosen.values())[:SHOWN]


def _finding(chosen: list[Series], findings: Mapping[Key, Finding]) -> str:
    seen = [found.resolution for one in chosen if (found := findings.get(one.key)) and found.resolution is not None]
    longest = max(len(one.points) for one in chosen)
    if not seen:
        return f"Up to {longest} commits, and not one series with enough processes for the alert to judge."
    smallest = math.ceil(100 * min(seen))
    return f"Up to {longest} commits; the smallest change of the newest that the alert would show here is {smallest} %."


FIGURE = Plot(draw, "judged")
