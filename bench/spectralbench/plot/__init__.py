"""Draw every figure from stored results alone: `draw_all` (needs pandas, seaborn and matplotlib, never torch).

One file per figure in `figures`. A figure that has no data is not drawn, and the reason is returned.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spectralbench.collector import short_collections
from spectralbench.history import History, current, load, only_machine
from spectralbench.plot import figures
from spectralbench.text import meant

if TYPE_CHECKING:
    from spectralbench.plot.style import NotDrawn, Page

FIGURES = tuple(sorted(module.name for module in pkgutil.iter_modules(figures.__path__)))
"""Their names, which are those of their files: adding a file adds a figure, deleting it removes it."""


Of = Literal["newest", "every commit", "history", "judged"]


@dataclass(frozen=True, slots=True)
class Plot:
    """How a figure is drawn: `draw(data, machine)` yields its pages, or why one is missing.

    of: what `draw` is given: the newest point of every series as a table (see `frame.measurements`), the points of
    every commit as such a table, the history of the machine itself, or that (history, findings of the alert).
    """

    draw: Callable[[Any, str], Iterator[Page | NotDrawn]]
    of: Of = "newest"


@dataclass(frozen=True, slots=True)
class Gallery:
    """The files drawn, (machine, figure, reason) for each figure, or part of one, that was not drawn, and the files of
    earlier drawings of the same figures that the results do not give any more, which were removed."""

    paths: tuple[Path, ...]
    skipped: tuple[tuple[str, str, str], ...]
    removed: tuple[Path, ...]

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def load_figures(names: Sequence[str] = FIGURES) -> dict[str, Plot]:
    """Figures by name, none but these imported; ModuleNotFoundError where the drawing libraries are missing."""
    return {name: importlib.import_module(f"{figures.__name__}.{name}").FIGURE for name in names}


def draw_all(
    results: Path | History, out: Path, machine: str | None = None, *, only: Sequence[str] = FIGURES
) -> Gallery:
    """Write `out/<machine>/<figure>[-<what>].png` for one machine or all, from the newest point of every series.

    Of the figures in `only`, no other file is left there: what an earlier drawing showed and the results no longer
    give is removed. results: the results folder, or a history that is loaded already.

    Raises: ValueError if the machine or a figure in `only` is unknown; ModuleNotFoundError, saying what to install, if
    the drawing libraries are missing.
    """
    unknown = [name for name in only if name not in FIGURES]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}{meant(unknown[0], FIGURES)}")
    history = current(only_machine(results if isinstance(results, History) else load(results), machine))
    try:
        from spectralbench import alert
        from spectralbench.plot.frame import measurements, misfit
        from spectralbench.plot.style import NotDrawn, save, styled

        known = load_figures(only)
    except ModuleNotFoundError as missing:
        missing.msg = f"figures need {missing.name}; install them with: pip install 'spectralbench[plots]'"
        raise
    make: dict[Of, Callable[[History], Any]] = {
        "newest": measurements,
        "every commit": partial(measurements, every=True),
        "history": lambda own: own,
        "judged": lambda own: (own, alert.judge(own)),
    }
    wanted = {figure.of for figure in known.values()}
    paths: list[Path] = []
    skipped: list[tuple[str, str, str]] = []
    before: set[Path] = set()
    with short_collections():
        for name in history.machines:
            own = only_machine(history, name)
            data = {kind: make[kind](own) for kind in wanted}
            misfits = Counter(reason for series in own.series if (reason := misfit(series.params)))
            skipped += [(name, "all", f"{count} series: {reason}") for reason, count in misfits.items()]
            for figure in only:
                before |= {*(out / name).glob(f"{figure}.png"), *(out / name).glob(f"{figure}-*.png")}
                with styled():
                    for page in known[figure].draw(data[known[figure].of], name):
                        if isinstance(page, NotDrawn):
                            skipped.append((name, figure, page.reason))
                            continue
                        stem = f"{figure}-{page.suffix}" if page.suffix else figure
                        paths.append(save(page.figure, out / name / f"{stem}.png", page.finding))
    removed = sorted(before - set(paths))
    for path in removed:
        path.unlink()
    return Gallery(tuple(paths), tuple(skipped), tuple(removed))
