"""Steps of one network over the compression, relative to its uncompressed form (plots P01 and P18): seed 003, 7 and 13.

Percent of the same layers at compression 0, as in the paper; a dashed line is the network with torch's convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectralbench.history import History
from spectralbench.plot.style import (
    MOST_PAGES,
    Look,
    NotDrawn,
    Page,
    finish_plain,
    panels,
    percent_axis,
    save,
    sequence_looks,
    styled,
)
from spectralbench.steps import BETA, NATIVE, RATED, SPECNET, StepRow, networks

QUANTITIES: tuple[tuple[str, Callable[[StepRow], float | None]], ...] = (
    ("inference", lambda row: row.inference),
    ("training step", lambda row: row.step),
    ("saved for backward", lambda row: row.saved),
    ("peak memory", lambda row: row.peak),
)


def draw(found: Sequence[StepRow], title: str, path: Path) -> Path:
    """Write the figure to `path` and return it.

    Raises: ValueError where no kind of layers has a rate of 0 and another; OSError where it cannot be written.
    """
    with styled():
        figure = _figure(found, title)
        if figure is None:
            raise ValueError("no layers were measured at compression 0 and at another, so there is nothing to compare")
        return save(figure, path)


def draw_stored(history: History, machine: str) -> Iterator[Page | NotDrawn]:
    """A page per network that was measured with `spectralbench model`."""
    drawn = 0
    for name, found in networks(history.series).items():
        figure = _figure(found, f"Steps of a network\n{machine} · {name}")
        if figure is None:
            yield NotDrawn(f"{name}: no layers were measured at compression 0 and at another")
        elif drawn == MOST_PAGES:
            yield NotDrawn(f"{name}: {MOST_PAGES} networks are drawn")
        else:
            suffix = name.replace(", ", "-") if drawn else ""
            drawn += 1
            yield Page(suffix, figure, _finding(found))
    if not drawn:
        yield NotDrawn("no network was measured at two rates: spectralbench model NETWORK")


def _figure(found: Sequence[StepRow], title: str) -> Figure | None:
    kinds = [kind for kind in (*RATED, SPECNET) if _over(found, kind)]
    if not kinds:
        return None
    looks = sequence_looks([name for name, _ in QUANTITIES])
    native = next((row for row in found if row.layers == NATIVE), None)
    figure, axes = panels(1, min(len(kinds), 3), sharex=False, sharey=False)
    for ax, kind in zip(axes[0], kinds, strict=False):
        own = _over(found, kind)
        for name, value in QUANTITIES:
            # Thresholds have no uncompressed form of the same layers: they stand beside native.
            whole = value(native if kind == SPECNET and native is not None else own[0])
            points = [(_place(row), value(row)) for row in own]
            if whole:
                drawn = [(x, y / whole) for x, y in points if x is not None and y is not None]
                if drawn:
                    ax.plot(*zip(*drawn, strict=True), label=name, **looks[name].line())
                if kind != SPECNET and native is not None and (beside := value(native)) is not None:
                    ax.axhline(beside / whole, color=looks[name].color, linestyle=(0, (4, 3)), linewidth=1)
        ax.set_title(kind)
        ax.set_ylim(bottom=0)
        if kind == SPECNET:
            ax.set_xlabel("beta")
            percent_axis(ax, "y", "of native")
        else:
            percent_axis(ax, "x", "achieved compression")
            percent_axis(ax, "y", "of compression 0\n(dashed: native)")
    shown: dict[str, Look | Line2D] = dict(looks)
    return finish_plain(figure, title, shown, "of the newest commit that measured each")


def _place(row: StepRow) -> float | None:
    return float(row.rate.removeprefix(BETA)) if row.layers == SPECNET else row.achieved


def _over(found: Sequence[StepRow], kind: str) -> list[StepRow]:
    """The rows of a kind by rate, if there are two, the first of them 0 or, for thresholds, native beside them."""
    own = [row for row in found if row.layers == kind and row.failed is None]
    own.sort(key=lambda row: float(row.rate.removeprefix(BETA)))
    if len(own) < 2:
        return []
    whole = any(row.layers == NATIVE for row in found) if kind == SPECNET else float(own[0].rate) == 0.0
    return own if whole else []


def _finding(found: Sequence[StepRow]) -> str:
    """What the highest rate at which the first kind was measured makes of a step, and of what it saves.

    A training step where one was measured, else an inference.
    """
    kind = next(kind for kind in (*RATED, SPECNET) if _over(found, kind))
    own = _over(found, kind)
    first = next(row for row in found if row.layers == NATIVE) if kind == SPECNET else own[0]
    (inferred, of_inference), (trained, of_step), (_, of_saved), _ = QUANTITIES
    for words, of_time in ((trained, of_step), (inferred, of_inference)):
        for row in reversed(own[kind != SPECNET :]):
            before, after = of_time(first), of_time(row)
            if not before or after is None:
                continue
            parts = [f"{100 * after / before:.0f} % of the time of {'an' if words == inferred else 'a'} {words}"]
            if (kept := of_saved(first)) and (keeps := of_saved(row)) is not None:
                parts.append(f"{100 * keeps / kept:.0f} % of the bytes saved")
            rate = row.rate if kind == SPECNET else f"c = {row.rate}"
            return f"At {rate} layers of the kind {kind} take {' and '.join(parts)}."
    return f"No step of layers of the kind {kind} was timed at two rates."
