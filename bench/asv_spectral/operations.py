"""One asv class per operation, generated from the registry; every number comes from the measuring core.

A class is named after its operation and has one `track_<metric>` method per metric. Its parameters are the
implementation and whatever varies in the operation's `asv` profile. asv starts a process for every metric and
parameter; the first of them measures the whole case, all its implementations interleaved, and the others read what it
left in asv's cache folder. So the numbers of a case come from one run and can be compared, and the suite costs one run
per case.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectralbench.metrics import Metric
    from spectralbench.outcome import Outcome
    from spectralkernels.declare import Case, Operation, Pass, Scalar

TIMEOUT = 600.0  # seconds; a first Triton compilation passes asv's 60
UNITS = {"second": "seconds", "byte": "bytes", "1": "unit"}  # the names by which asv scales and labels an axis

Number = float | dict[str, Any]


def suite(operation: Operation, metrics: Mapping[str, Metric]) -> type:
    """The asv class of one operation.

    Returns: a class with `params`, `param_names`, `setup_cache` and a `track_<metric>` method for each metric that
        follows the operation (`Metric.asv`).
    Raises: ValueError where the asv profile is no dense grid: asv knows only cartesian products.
    """
    names = tuple(name for name, metric in metrics.items() if metric.asv is not None and metric.asv(operation))
    grid = _grid(operation, names)
    attributes: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": operation.summary,
        "params": [list(grid.implementations), *([_told(name, one) for one in grid.axes[name]] for name in grid.axes)],
        "param_names": ["implementation", *grid.axes],
        "timeout": TIMEOUT,
        # The same function in every class: asv keys a cache folder by the line on which its function is defined.
        "setup_cache": _setup_cache,
        **{f"track_{name}": _tracker(grid, metrics[name]) for name in names},
    }
    return type(operation.name, (), attributes)


class Labelled:
    """A parameter's value that asv shows, and stores, as `K=3`; a number in all else."""

    name: str

    def __repr__(self) -> str:
        return f"{self.name}={super().__repr__()}"


class LabelledInteger(Labelled, int):
    """Such as `K=3`."""


class LabelledFraction(Labelled, float):
    """Such as `c=0.5`."""


def _told(name: str, value: Scalar) -> Scalar:
    """The value of a parameter with its short name in front, where it is a number."""
    from spectralbench.names import LETTERS

    if type(value) not in (int, float):
        return value
    told = LabelledInteger(value) if type(value) is int else LabelledFraction(value)
    told.name = LETTERS.get(name, name)
    return told


@dataclass(frozen=True, slots=True)
class _Grid:
    """The asv profile of an operation: the axes that vary, and the case and pass at every point of their product."""

    operation: Operation
    axes: Mapping[str, tuple[Scalar, ...]]
    cases: Mapping[tuple[Scalar, ...], tuple[Case, Pass]]
    implementations: tuple[str, ...]
    metrics: tuple[str, ...]


def _grid(operation: Operation, metrics: tuple[str, ...]) -> _Grid:
    rows: list[tuple[dict[str, Scalar], Case, Pass]] = [
        ({"pass": pass_, "dtype": case.dtype, **dict(case.params)}, case, pass_)
        for case, block in operation.cases("asv")
        for pass_ in block.passes
    ]
    values = {name: tuple(dict.fromkeys(row[name] for row, _, _ in rows)) for name in rows[0][0]}
    axes = {name: found for name, found in values.items() if len(found) > 1}
    cases = {tuple(row[name] for name in axes): (case, pass_) for row, case, pass_ in rows}
    points = math.prod(len(found) for found in axes.values())
    if len(rows) != points or len(cases) != points:
        raise ValueError(
            f"{operation.name}: the asv profile must be one block that is legal at every point, got {len(rows)} cases "
            f"on a grid of {points} points; drop the values that `where` excludes"
        )
    return _Grid(operation, axes, cases, _implementations(operation), metrics)


def _implementations(operation: Operation) -> tuple[str, ...]:
    """Those that the asv profile names, kernels that only run on a GPU too: machines share one list and one history."""
    named = {name for _, block in operation.cases("asv") for name in block.implementations or ()}
    return tuple(found.name for found in operation.subjects if not named or found.name in named)


def _tracker(grid: _Grid, metric: Metric) -> Callable[..., Number]:
    """The method that asv calls with the implementation and the values of the axes."""

    def track(self: object, implementation: str, *point: Scalar) -> Number:
        return _number(_measured_once(grid, *grid.cases[point])[implementation], metric.name)

    track.__name__ = f"track_{metric.name}"
    track.__doc__ = f"{metric.name} of {grid.operation.name}"
    attributes = {
        "unit": UNITS.get(metric.unit, metric.unit),
        "version": f"{grid.operation.version}.{metric.version}",
        "pretty_name": f"{grid.operation.name}: {metric.name.replace('_', ' ')}",
    }
    vars(track).update(attributes)
    return track


def _number(outcome: Outcome, metric: str) -> Number:
    """What asv stores: samples, one number, or NaN with the reason printed; a failure raises and is stored as null."""
    from spectralbench.outcome import Failed, Measured, Skipped

    match outcome:
        case Skipped(reason):
            return _absent(reason)
        case Failed(kind, error):
            raise RuntimeError(f"{kind}: {error}")
        case Measured(measurements, unavailable):
            for found in measurements:
                if found.metric == metric:
                    return _finite(found.samples)
            return _absent(dict(unavailable).get(metric, f"{metric} does not apply here"))


def _finite(samples: tuple[float, ...]) -> Number:
    if not all(math.isfinite(sample) for sample in samples):
        raise ValueError(f"every sample must be finite, got {samples}; `asv publish` breaks on infinities")
    # Undocumented but pinned by a test: asv takes median, interval and significance from such a dictionary.
    return {"samples": list(samples), "number": 1} if len(samples) > 1 else samples[0]


def _absent(reason: str) -> float:
    print(f"not available: {reason}", file=sys.stderr)
    return math.nan


def _measured_once(grid: _Grid, case: Case, pass_: Pass) -> Mapping[str, Outcome]:
    """Measure a case with all its implementations, or read what an earlier process of this asv run measured.

    asv runs every benchmark inside the folder in which `_setup_cache` ran, one process at a time.
    """
    key = hashlib.sha256(f"{case} {pass_}".encode()).hexdigest()
    begun, partial, finished = (Path(f"{key}.{state}") for state in ("begun", "partial", "pickle"))
    if finished.exists():
        outcomes: Mapping[str, Outcome] = pickle.loads(finished.read_bytes())
        return outcomes
    if begun.exists():
        raise RuntimeError(
            f"{case.operation} at {case.id}: the process that measured it crashed or ran out of time; "
            "run `asv run --show-stderr` and read the first failure of this case"
        )
    begun.touch()
    outcomes = _measure(grid, case, pass_)
    partial.write_bytes(pickle.dumps(outcomes))
    partial.rename(finished)
    return outcomes


def _measure(grid: _Grid, case: Case, pass_: Pass) -> Mapping[str, Outcome]:
    from spectralbench.environment import device_kind
    from spectralbench.measure import Budget, measure_case
    from spectralbench.sweep import BUDGETS

    return measure_case(
        grid.operation,
        case,
        grid.implementations,
        device=device_kind(),
        pass_=pass_,
        metrics=grid.metrics,
        budget=Budget(**BUDGETS["asv"]),  # type: ignore[arg-type]
    )


def _setup_cache(self: object) -> None:
    """Leave nothing: what is wanted is the folder that asv makes for it, shared by all benchmarks of one run."""


def _suites() -> dict[str, type]:
    if importlib.util.find_spec("torch") is None:
        print("asv_spectral has no benchmarks here: torch is not installed (pip install torch)", file=sys.stderr)
        return {}
    from spectralbench.metrics import load_metrics
    from spectralkernels.ops import load_operations

    metrics = load_metrics()
    return {name: suite(found, metrics) for name, found in load_operations().items() if found.profiles.get("asv")}


globals().update(_suites())
