"""What a run says about noise: the usual variance of its series, and how far unchanged points stray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[Any]

BEYOND = 0.05
CAUTION = 25.0
FEWEST_SERIES = 30
LIGHTEST = -0.05
LEAST_P = 1e-300
MOST_DEGREES = 200.0
STRAIGHT = 60.0
TABLED = 3000


@dataclass(frozen=True, slots=True)
class Prior:
    """The usual variance of a point, worth `degrees` of freedom; `mean` is the average variance of the run."""

    variance: float
    mean: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised Pareto tail of deviates beyond `start`, which a fraction BEYOND exceeds."""

    start: float
    shape: float
    scale: float

    def survival(self, z: Array) -> Array:
        """The probability of more than `z`; zero up to `start`, where the normal distribution is right anyway."""
        beyond = np.maximum(z - self.start, 0.0)
        return np.where(z > self.start, BEYOND * stats.genpareto.sf(beyond, self.shape, scale=self.scale), 0.0)

    def deviate(self, p: float) -> float:
        """The deviate that is exceeded with probability `p`, at most BEYOND."""
        return self.start + float(stats.genpareto.isf(p / BEYOND, self.shape, scale=self.scale))


def usual(differences: Array) -> Prior | None:
    """From successive differences [series, point], NaN where there is none; None below FEWEST_SERIES series.

    Where the variances scatter as those of equal series would, the moments of an F distribution say so whatever the
    noise looks like; otherwise the moments of their logarithms (Smyth 2004) do.
    """
    known = np.isfinite(differences)
    count = known.sum(1)
    variance = np.where(known, differences**2, 0.0).sum(1) / np.maximum(2 * count, 1)
    use = (count >= 2) & (variance > 0)
    if use.sum() < FEWEST_SERIES:
        return None
    variance, degrees = variance[use], (2 * count[use] + 1) / 3
    clipped = np.minimum(variance, np.quantile(variance, 0.99))
    mean, middle = float(clipped.mean()), float(np.median(degrees))
    excess = middle * float(clipped.var()) / mean**2 - 2
    worth = (4 * (excess + 2) + 2 * (middle - 2)) / excess if excess > 0 else MOST_DEGREES
    if worth > 10:
        worth = min(worth, MOST_DEGREES)
        return Prior(mean * (worth - 2) / worth, mean, worth)
    logs = np.log(variance) - special.digamma(degrees / 2) + np.log(degrees / 2)
    extra = float(logs.var() - special.polygamma(1, degrees / 2).mean())
    worth = min(2 * _inverse_trigamma(extra), MOST_DEGREES) if extra > 0 else MOST_DEGREES
    centre = float(np.median(logs) + special.digamma(worth / 2) - np.log(worth / 2))
    return Prior(float(np.exp(centre)), mean, worth)


def fit(z: Array) -> Tail:
    """The upper tail of `z` by probability-weighted moments (Hosking and Wallis 1987).

    It is heavier than fitted, by CAUTION over the number of values, and hardly lighter than exponential: what was not
    seen is not impossible.
    """
    start = float(np.quantile(z, 1 - BEYOND))
    beyond = np.sort(z[z > start] - start)
    size = len(beyond)
    if size < 2 or beyond[-1] == 0:
        return Tail(start, 0.0, 1e-9)
    first = float(beyond.mean())
    second = float(((size - np.arange(1, size + 1) + 0.35) / size * beyond).mean())
    shape = 2 - first / (first - 2 * second)
    return Tail(start, max(shape + CAUTION / size, LIGHTEST), first * (1 - min(shape, 0.9)))


def deviate(change: Array, error: Array, degrees: Array) -> Array:
    """The normal deviate that is as rare as the t statistic change / error; huge where a change has no error.

    change, error: [series, point]. degrees: [series, 1], of freedom.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, change / error, np.where(change == 0, 0.0, np.inf))
    size = np.abs(t)
    z = np.empty_like(size)
    for free in np.unique(degrees):
        rows = degrees[:, 0] == free
        z[rows] = _normal(size[rows], float(free))
    return np.sign(change) * z


def _normal(t: Array, free: float) -> Array:
    """Deviates of t statistics of `free` degrees, from a table where there are many: p is right to 2e-4 of itself.

    They are nearly straight in sqrt(n log(1 + t^2 / n)) (Wallace 1959), so that lines between 1,024 points do.
    """
    if t.size < TABLED or free < 2:
        return _normal_at(t, free)
    straight = np.linspace(0.0, STRAIGHT, 1024)
    with np.errstate(over="ignore"):
        exact = _normal_at(np.sqrt(free * np.expm1(straight**2 / free)), free)
        return np.interp(np.sqrt(free * np.log1p(t**2 / free)), straight, exact)


def _normal_at(t: Array, free: float) -> Array:
    deviates: Array = -special.ndtri(np.maximum(special.stdtr(free, -t), LEAST_P))
    return deviates


def _inverse_trigamma(value: float) -> float:
    """The y with trigamma(y) = value, by Newton's iteration (Smyth 2004, appendix)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if abs(step) < 1e-8 * y:
            break
    return y
