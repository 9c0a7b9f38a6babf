"""Time every case of a profile: `pytest bench/pytest_spectral --spectral-profile asv`.

Works with --benchmark-save, --benchmark-compare and --benchmark-compare-fail=median:5%.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from spectralbench import names
from spectralbench.outcome import Failed, Measured, Skipped

if TYPE_CHECKING:
    from conftest import Core
    from pytest_benchmark.fixture import BenchmarkFixture


class Replay:
    """A timer that shows pytest-benchmark the core's samples: it reads 0 at each start and a sample at each end."""

    __name__ = "spectralbench.clock"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples: tuple[float, ...]) -> None:
        """Set the samples, seconds per call, of as many rounds of one iteration."""
        self._readings = iter([reading for sample in samples for reading in (0.0, sample)])

    def __call__(self) -> float:
        return next(self._readings)


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """The timer of this test's `benchmark` fixture, which must come after it among the arguments."""
    timer = Replay()
    request.node.add_marker(pytest.mark.benchmark(timer=timer))
    return timer


def test_operation(
    operation: str,
    implementation: str,
    pass_: str,
    dtype: str,
    case: str,
    core: Core,
    replay: Replay,
    benchmark: BenchmarkFixture,
) -> None:
    row = (operation, implementation, pass_, dtype, case)
    match core.outcome(*row):
        case Skipped(reason):
            pytest.skip(reason)
        case Failed(kind, error):
            pytest.fail(f"{kind}: {error}", pytrace=False)
        case Measured() as measured:
            item = core.items[operation, pass_, dtype, case]
            core.shown.append((item, implementation, measured))
            times = next(found.samples for found in measured.measurements if found.metric == "device_time")
            replay.load(times)
            benchmark.group = names.of_case(item.case, item.pass_)
            benchmark.extra_info.update(
                {found.metric: found.median for found in measured.measurements if found.metric != "device_time"},
                units={found.metric: found.unit for found in measured.measurements},
                unavailable=dict(measured.unavailable),
            )
            benchmark.pedantic(lambda: None, rounds=len(times))
