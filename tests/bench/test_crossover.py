"""The place from which ours wins: exact on curves that are known, and an interval that holds the truth."""

from __future__ import annotations

import math
import random

import pytest

from spectralbench.crossover import crossover

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
    assert crossover([lose]).words("K") == "at no K from 1 to 31 (not judged)"
    mixed = crossover([win, power(4.0), lose])
    assert mixed.words("K") == "from K = 4 [<= 1, > 31] (not judged)"
    assert crossover([power(4.0)]).words("K") == "from K = 4 (not judged)"


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
