"""What a run of a thousand series weighs: nothing where nothing changed, and a change at its commit."""

from __future__ import annotations

import numpy as np
import pytest

from spectralbench import simulate
from spectralbench.alert import evidence
from spectralbench.alert.evidence import weigh
from spectralbench.alert.judging import RATE
from spectralbench.alert.tails import Tail


@pytest.mark.parametrize("kind", simulate.KINDS)
@pytest.mark.parametrize(("earlier", "processes"), [(3, 3), (8, 5)])
def test_a_run_of_unchanged_series_is_silent(kind: str, earlier: int, processes: int, seed: int) -> None:
    """The rate is 1 % of runs; two of two is one in 10,000."""
    rng = np.random.default_rng(seed)
    alarmed = [simulate.alarms(weigh(simulate.run(rng, kind, 0.04, earlier, processes, True))).any() for _ in range(2)]
    assert not all(alarmed)


@pytest.mark.parametrize("kind", simulate.KINDS)
def test_one_changed_series_of_a_thousand_is_found(kind: str, seed: int) -> None:
    """99 % are; the tail that a run of heavy noise shows may be twice too long, but hardly in two of four runs."""
    rng = np.random.default_rng(seed)
    seen: list[bool] = []
    at: list[int] = []
    for _ in range(4):
        values = simulate.run(rng, kind, 0.01, 8, 5, False)
        values[: simulate.CHANGED, -1] += np.log(1.05)
        found = weigh(values, alarm=RATE / simulate.RUN, practical=simulate.PRACTICAL)
        told = found.slower[: simulate.CHANGED] <= RATE / simulate.RUN
        seen += told.tolist()
        at += found.split[: simulate.CHANGED][told].tolist()
    assert np.mean(seen) >= 0.6 and np.mean(np.equal(at, 8)) >= 0.7


def test_the_newest_change_is_not_half_of_itself_one_commit_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much lighter the tail for older commits was fitted, where both would be told."""
    lighter, heavier = Tail(1.6, 0.0, 0.1), Tail(1.6, 0.0, 0.4)
    monkeypatch.setattr(evidence, "_placebos", lambda *_: (heavier, heavier))
    monkeypatch.setattr(evidence, "_shuffled", lambda *_: (lighter, lighter))
    rng = np.random.default_rng(1)
    values = 0.01 * rng.standard_normal((50, 9, 1))
    values[:, -1] += 0.2
    assert (weigh(values).split == 8).all()


def test_a_tail_so_heavy_that_nothing_can_be_told_shows_no_change_as_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Student's deviate of a p value of 1e-300 is answered by scipy with minus infinity."""
    heavy = Tail(1.6, 3.0, 1e3)
    monkeypatch.setattr(evidence, "_placebos", lambda *_: (heavy, heavy))
    monkeypatch.setattr(evidence, "_shuffled", lambda *_: (heavy, heavy))
    values = 0.01 * np.random.default_rng(1).standard_normal((2, 5, 1))
    assert (weigh(values).visible > 1).all()


@pytest.mark.parametrize("minimum", [1, 3])
def test_a_history_of_two_points_is_weighed_where_one_earlier_one_is_enough(minimum: int, seed: int) -> None:
    values = 0.01 * np.random.default_rng(seed).standard_normal((40, 2, 3))
    values[0, 1] += 1.0
    found = weigh(values, minimum=minimum)
    assert np.isfinite(found.slower).all() and found.slower.argmin() == 0
    assert (found.slower < 1).any() == (minimum == 1)


def test_a_drift_is_seen_whole_however_many_processes_see_its_newest_part(seed: int) -> None:
    """A drift is a chain of changes, and the newest one, weaker than the whole, used to take its place."""
    rng = np.random.default_rng(seed)
    values = simulate.run(rng, "gaussian", 0.02, 17, 5, False)
    values[: simulate.CHANGED] += np.log(1.01) * np.maximum(np.arange(18) - 7, 0)[None, :, None]
    found = weigh(values, practical=simulate.PRACTICAL)
    assert simulate.found_alone(found).mean() >= 0.9
    assert not simulate.alarms(found)[simulate.CHANGED :].sum() > 5, "the others did not drift"
