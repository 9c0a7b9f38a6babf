"""The place from which ours wins: exact on curves that are known, and an interval that holds the truth."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from synthetic_records import commit_hash, environment, record, write

from spectralbench import contest, history
from spectralbench.crossings import crossings
from spectralbench.crossover import crossover
from spectralbench.interval import student
from spectralbench.settings import settings

PLACES = (1.0, 3.0, 5.0, 7.0, 15.0, 31.0)


def power(at: float, slope: float = -1.0) -> dict[float, float]:
    """A straight line in both logarithms that falls through zero at `at`."""
    return {place: slope * math.log(place / at) for place in PLACES}


@pytest.mark.parametrize("at", [1.5, 4.0, 6.9, 30.0])
def test_a_power_law_is_crossed_exactly(at: float) -> None:
    found = crossover([power(at)] * 3)
    assert found is not None and found.judged
    assert found.value == pytest.approx(at) and found.low == pytest.approx(at) and found.high == pytest.approx(at)


def test_the_last_loss_counts() -> None:
    """Who wins at K = 3, loses at 7 and wins again from 15 pays between 7 and 15."""
    curve = {1.0: -1.0, 3.0: -1.0, 7.0: 1.0, 15.0: -1.0}
    found = crossover([curve])
    assert found is not None and found.value == pytest.approx(math.sqrt(7 * 15)) and not found.judged


def test_everywhere_and_nowhere_are_said_in_words() -> None:
    win, lose = ({place: height for place in PLACES} for height in (-0.1, 0.1))
    assert crossover([win] * 3).words("K") == "at every K from 1 to 31"
    assert crossover([lose]).words("K") == "at no K from 1 to 31 (not judged: 1 of 3 processes)"
    mixed = crossover([win, power(4.0), lose])
    assert mixed.words("K") == "from K = 4 [<= 1, > 31] (not judged: its 3 processes disagree)"
    assert crossover([power(4.0)]).words("K") == "from K = 4 (not judged: 1 of 3 processes)"
    assert (
        crossover([win, win, power(4.0)]).words("K") == "from K <= 1 [<= 1, 4] (not judged: its 3 processes disagree)"
    )


def test_two_places_or_none_are_no_curve() -> None:
    assert crossover([]) is None
    assert crossover([{3.0: 1.0, 7.0: -1.0}]) is None
    assert crossover([{1.0: 1.0, 3.0: 1.0, 7.0: -1.0}, {1.0: 1.0, 3.0: 1.0, 15.0: -1.0}]) is None


def test_a_density_of_zero_is_a_place() -> None:
    found = crossover([{0.0: 1.0, 0.5: -1.0, 1.0: -2.0}])
    assert found is not None and found.value == pytest.approx(0.25)


def test_the_interval_holds_the_truth(seed: int) -> None:
    """95 % of 400 intervals from 3 to 6 noisy processes hold the place; 91 % or fewer would come once in 10,000."""
    rng = random.Random(seed)
    held = 0
    for _ in range(400):
        at = math.exp(rng.uniform(math.log(2), math.log(25)))
        curves = [power(at * math.exp(rng.gauss(0, 0.05))) for _ in range(rng.randint(3, 6))]
        found = crossover(curves)
        assert found is not None
        held += found.low <= at <= found.high
    assert held >= 0.91 * 400


def test_a_crossing_is_told_at_every_commit_along_kernel_size_compression_beta_and_density(tmp_path: Path) -> None:
    """Times are made so that ours pays from K = 5 / compression-dependent places, and later at K = 8."""
    for index, scale in enumerate((1.0, 1.6)):
        records = []
        for replicate in range(3):
            shared = {"replicate": replicate, "day": index}
            for size in (1, 3, 5, 7, 15):
                for compression in (0.25, 0.5, 0.75):
                    case = {"kernel_size": size, "compression": compression}
                    ours = 5.0 * scale * (1 - compression) / 0.5
                    for name, role, time in (("dft_gemm", "kernel", ours), ("direct", "baseline", float(size))):
                        records.append(
                            record({"device_time": time}, operation="band_limited_conv2d", implementation=name,
                                   role=role, case=case, **shared)
                        )  # fmt: skip
            for beta, density in ((0.5, 0.8), (1.0, 0.4), (2.0, 0.1)):
                for name, role, time in (("triton", "kernel", scale * density), ("dense", "baseline", 0.4)):
                    values = {"device_time": time, "kept_fraction": density}
                    records.append(
                        record(values, operation="sparse_multiply", implementation=name, role=role,
                               case={"beta": beta}, **shared)
                    )  # fmt: skip
        write(tmp_path, f"{index}", environment(commit=index), records)
    cases = contest.cases(history.load(tmp_path))
    found = [
        one
        for operation in ("band_limited_conv2d", "sparse_multiply")
        for setting in settings(operation, cases[operation])
        for one in crossings(setting)
    ]
    by_size = [one for one in found if (one.axis, one.fixed) == ("kernel_size", "c.5")]
    assert [(one.mark, round(one.found.value, 6)) for one in by_size] == [
        (commit_hash(0)[:8], 5.0), (commit_hash(1)[:8], pytest.approx(8.0, rel=0.03))
    ]  # fmt: skip
    by_compression = [one for one in found if (one.axis, one.fixed) == ("compression", "K3")]
    assert [round(one.found.value, 2) for one in by_compression] == [0.67, math.inf]  # interpolated; the truth is 0.7
    by_density = [one.as_dict() for one in found if one.axis == "density"]
    assert [one["value"] for one in by_density] == [pytest.approx(0.4), pytest.approx(0.25)]
    assert all(one["low"] == one["high"] == one["value"] and one["judged"] for one in by_density)
    assert {one.axis for one in found} == {"kernel_size", "compression", "beta", "density"}


def test_an_interval_holds_the_truth_as_often_as_it_says(seed: int) -> None:
    draw = random.Random(seed)
    held = 0
    for _ in range(500):
        found = student([0.1 + draw.gauss(0, 0.05) for _ in range(4)], 0.9)
        held += found.low <= math.exp(0.1) <= found.high
        assert (found.p < 0.1) == (not found.low <= 1 <= found.high)
    assert 400 <= held <= 490
    alone = student([0.5], 0.9)
    assert (alone.low, alone.high, alone.p) == (0.0, math.inf, 1.0)
    assert student([0.0, 0.0], 0.9).p == 1.0 and student([1.0, 1.0], 0.9).p == 0.0
    with pytest.raises(ValueError, match=r"expected logarithms and 0 < confidence < 1, got 0 and 0\.9"):
        student([], 0.9)
