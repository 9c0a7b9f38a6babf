"""Figures of a profile: stages as stacked bars, the roofline, memory over one training step, how busy all was."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from spectralbench import names
from spectralbench.ceilings import Ceilings
from spectralbench.plot.style import PALETTE, look_of, save, styled
from spectralbench.profiling import CaseProfile, Profile
from spectralbench.profiling.memory import Mark, Timeline
from spectralbench.profiling.trace import OUTSIDE
from spectralbench.quantity import scale
from spectralkernels.declare import Cost

WIDTH = 8.0
"""Inches; with 144 dots each no page is wider than 1,200."""
TITLE_COLUMNS = 90


def draw(found: CaseProfile, ceilings: Ceilings, title: str, folder: Path) -> list[Path]:
    """Write stages.png, roofline.png, memory.png and utilisation.png into a folder that exists; where they are."""
    panels = {"stages": _stages, "roofline": _roofline, "memory": _memory, "utilisation": _utilisation}
    findings = {
        "stages": _longest([(each.implementation, each) for each in found.profiles]),
        "roofline": _reached(found, ceilings),
    }
    paths = [folder / f"{name}.png" for name in panels]
    with styled():
        for path, (name, panel) in zip(paths, panels.items(), strict=True):
            height = 2.0 + 0.34 * len(found.profiles) if panel in (_stages, _utilisation) else 4.8
            figure, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
            panel(ax, found, ceilings)
            figure.suptitle(
                textwrap.fill(title.replace(",", ", ").replace(",  ", ", "), TITLE_COLUMNS), fontsize="small"
            )
            save(figure, path, findings.get(name, ""))
            plt.close(figure)
    return paths


def draw_stages(found: Sequence[CaseProfile], title: str, path: Path) -> Path:
    """Write the stages of several cases below each other, such as of several compressions (plot P17)."""
    varying = {name for one in found for name, value in one.case.params if value != found[0].case[name]}
    bars = [
        (f"{each.implementation} {names.short({name: one.case[name] for name in varying})}".strip(), each)
        for one in found
        for each in one.profiles
    ]
    with styled():
        figure, ax = plt.subplots(figsize=(WIDTH, 2.0 + 0.3 * len(bars)), layout="constrained")
        _bars(ax, bars)
        figure.suptitle(title, fontsize="small")
        save(figure, path, _longest(bars))
        plt.close(figure)
    return path


def _stages(ax: Axes, found: CaseProfile, ceilings: Ceilings) -> None:
    """The time of a call without the profiler, divided as the trace divides it."""
    _bars(ax, [(each.implementation, each) for each in found.profiles])


def _bars(ax: Axes, bars: Sequence[tuple[str, Profile]]) -> None:
    """A bar per profile with its label, a part per stage."""
    profiles = [each for _, each in bars]
    stages = list(dict.fromkeys(part.name for each in profiles for part in each.stages if part.name != OUTSIDE))
    divisor, symbol = scale([each.seconds for each in profiles], "second")
    rows = range(len(profiles))
    left = [0.0 for _ in rows]
    for index, name in enumerate([*stages, OUTSIDE]):
        widths = [_share(each, name) * each.seconds / divisor for each in profiles]
        color = "#BBBBBB" if name == OUTSIDE else PALETTE[index % len(PALETTE)]
        hatch = None if index < len(PALETTE) or name == OUTSIDE else "//"
        ax.barh(rows, widths, left=left, color=color, edgecolor="white", hatch=hatch, label=name, height=0.7)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    ax.set_yticks(rows, [label for label, _ in bars])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(f"time of a call ({symbol}); stages as shares of the traced call")
    _legend_below(ax)


def _longest(bars: Sequence[tuple[str, Profile]]) -> str:
    """Where most of the time goes in the fastest and in the slowest of the calls, as a sentence."""
    told = []
    for word, (label, each) in (
        ("fastest", min(bars, key=lambda bar: bar[1].seconds)),
        ("slowest", max(bars, key=lambda bar: bar[1].seconds)),
    ):
        stages = {part.name: _share(each, part.name) for part in each.stages}
        if stages:
            name = max(stages, key=lambda known: stages[known])
            told.append(f"the {word}, {label}, spends {100 * stages[name]:.0f} % of its time in: {name}")
    return f"Of {len(bars)} calls {'; '.join(told)}." if told else ""


def _reached(found: CaseProfile, ceilings: Ceilings) -> str:
    """How near the nearest implementation comes to the roof, as a sentence."""
    roof = min(ceilings.flops_per_second, intensity(found.cost) * ceilings.bytes_per_second)
    best = min(found.profiles, key=lambda each: each.seconds)
    share = found.cost.flops / best.seconds / roof
    return f"{best.implementation} comes nearest, at {100 * share:.0f} % of what this device can do at the least work."


def _share(profile: Profile, name: str) -> float:
    return sum(part.seconds for part in profile.stages if part.name == name) / profile.traced_seconds


def _roofline(ax: Axes, found: CaseProfile, ceilings: Ceilings) -> None:
    """How much of the necessary arithmetic each implementation does in a second, under what this device can do."""
    x = intensity(found.cost)
    knee = ceilings.flops_per_second / ceilings.bytes_per_second
    ends = [min(x, knee) / 30, knee, max(x, knee) * 30]
    roof = [min(ceilings.flops_per_second, each * ceilings.bytes_per_second) / 1e9 for each in ends]
    ax.loglog(ends, roof, color="black", label="measured ceiling of this device")
    for each in found.profiles:
        rate, look = found.cost.flops / each.seconds / 1e9, look_of(each.implementation, "kernel")
        ax.plot(
            [x], [rate], marker=look.marker, linestyle="", color=look.color, label=each.implementation, markersize=7
        )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 3)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("FLOPs that must be done for each byte that must move")
    ax.set_ylabel("necessary GFLOP/s")
    _legend_below(ax)


def intensity(cost: Cost) -> float:
    """FLOPs a byte of an operation's floor."""
    return cost.flops / cost.bytes


def _memory(ax: Axes, found: CaseProfile, ceilings: Ceilings) -> None:
    """Bytes over those before the step, by how far each pass has come, because the steps differ in length."""
    divisor, symbol = scale([each.timeline.peak for each in found.profiles], "byte")
    marks: tuple[Mark, ...] = ()
    for each in found.profiles:
        if not each.timeline.points:
            continue
        x = [progress(when, each.timeline) for when, _ in each.timeline.points]
        y = [size / divisor for _, size in each.timeline.points]
        look = look_of(each.implementation, "kernel")
        ax.step(x, y, where="post", color=look.color, linestyle=look.dash, label=each.implementation)
        marks = max(marks, each.timeline.marks, key=len)
    for end in range(1, len(marks)):
        ax.axvline(end, color="black", linewidth=1)
    ax.set_xticks([index + 0.5 for index in range(len(marks))], [mark.name for mark in marks])
    ax.set_xlim(0, max(1, len(marks)))
    ax.set_ylim(bottom=0)
    ax.grid(visible=False, axis="x")
    ax.set_ylabel(f"allocated over the start ({symbol})")
    _legend_below(ax)


def _utilisation(ax: Axes, found: CaseProfile, ceilings: Ceilings) -> None:
    """How busy host and device were (plot P08): a bar to the mean, a line on to the largest; no bar if not known."""
    names = list(dict.fromkeys(name for each in found.profiles for name in each.busy))
    thick = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        known = [(row, each.busy.get(name)) for row, each in enumerate(found.profiles)]
        bars = [
            (row + (index - (len(names) - 1) / 2) * thick, *value) for row, value in known if isinstance(value, tuple)
        ]
        at, means, largest = zip(*bars, strict=True) if bars else ((), (), ())
        color = PALETTE[index % len(PALETTE)]
        label = f"{name}, of one core" if name == "cpu" else name
        ax.barh(at, means, height=0.9 * thick, color=color, label=label if bars else f"{name}: not known")
        ax.hlines(at, means, largest, color=color, linewidth=2)
    ax.set_yticks(range(len(found.profiles)), [each.implementation for each in found.profiles])
    ax.set_ylim(len(found.profiles) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("% busy (gpu memory: % taken); a bar is the mean, its line ends at the largest")
    _legend_below(ax)


def progress(when: float, timeline: Timeline) -> float:
    """A moment as passes that are over, and the share of the pass under way."""
    for index, mark in enumerate(timeline.marks):
        if when < mark.begin:
            return float(index)
        if when <= mark.end:
            return index + (when - mark.begin) / max(mark.end - mark.begin, 1e-12)
    return float(len(timeline.marks))


def _legend_below(ax: Axes) -> None:
    ax.figure.legend(loc="outside lower center", ncols=3, fontsize="x-small", frameon=False)
