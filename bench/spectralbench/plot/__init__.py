"""Draw every figure from stored results alone: `draw_all` (needs pandas, seaborn and matplotlib, never torch).

One module per family of figures. A figure that has no data is not drawn, and the reason is returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectralbench.history import History, current, load, only_machine

FIGURES = (
    "speedup_map",
    "kernel_size_sweep",
    "error_vs_compression",
    "kept_vs_beta",
    "sparse_crossover",
    "nominal_vs_achieved",
    "pareto",
    "watched_history",
)


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
        raise ValueError(f"unknown figure {unknown[0]!r}; known: {', '.join(FIGURES)}")
    history = current(only_machine(results if isinstance(results, History) else load(results), machine))
    try:
        from spectralbench.plot import achieved, error, heat, kernel_size, pareto, sparse, watched
        from spectralbench.plot.frame import measurements, misfit
        from spectralbench.plot.style import NotDrawn, save, styled
    except ModuleNotFoundError as missing:
        missing.msg = f"figures need {missing.name}; install them with: pip install 'spectralbench[plots]'"
        raise
    families = {
        "kernel_size_sweep": kernel_size.draw,
        "error_vs_compression": error.draw,
        "kept_vs_beta": sparse.draw_kept,
        "sparse_crossover": sparse.draw_crossover,
        "nominal_vs_achieved": achieved.draw,
        "pareto": pareto.draw,
    }
    over_commits = ("kernel_size_sweep", "pareto")
    of_history = {"speedup_map": heat.draw, "watched_history": watched.draw}
    paths: list[Path] = []
    skipped: list[tuple[str, str, str]] = []
    before: set[Path] = set()
    for name in history.machines:
        own = only_machine(history, name)
        frame = measurements(own)
        one_point = all(len(series.points) == 1 for series in own.series)
        past = frame if one_point or not {*only} & {*over_commits} else measurements(own, every=True)
        misfits = Counter(reason for series in own.series if (reason := misfit(series.params)))
        skipped += [(name, "all", f"{count} series: {reason}") for reason, count in misfits.items()]
        for figure in only:
            before |= {*(out / name).glob(f"{figure}.png"), *(out / name).glob(f"{figure}-*.png")}
            with styled():
                if figure in of_history:
                    pages = of_history[figure](own, name)
                else:
                    pages = families[figure](past if figure in over_commits else frame, name)
                for page in pages:
                    if isinstance(page, NotDrawn):
                        skipped.append((name, figure, page.reason))
                        continue
                    stem = f"{figure}-{page.suffix}" if page.suffix else figure
                    paths.append(save(page.figure, out / name / f"{stem}.png", page.finding))
    removed = sorted(before - set(paths))
    for path in removed:
        path.unlink()
    return Gallery(tuple(paths), tuple(skipped), tuple(removed))
