"""How strongly each series speaks of a change: the whole series is searched, and the run supplies the noise.

For every split of a series into earlier and later points the statistic is the difference of their means over its
standard error. Few points estimate a spread badly, a thousand series together do not: each variance is moderated by
what is usual in the run (Smyth 2004, "limma"), which is taken from successive differences, since steps and drifts
hardly touch those. The search is repeated on what follows a change, so that the newest change is the one named.

Noise has heavy tails and two modes, so no p value of a t distribution is believed far out. Each earlier point of the
run is judged as if it were the newest, and shuffled series are searched for steps; a generalised Pareto tail fitted to
these placebos (`tails`) bounds the p values from below. Too few placebos show no tail, and the heaviest that was met in
simulation is assumed. Whether the processes of a point are averaged or trimmed, and how far the run is trusted over the
series, is what lets the median series see the smallest change.

asv.step_detect, the library for steps, gives neither a p value nor an error rate and needs the asv extra.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from spectralbench.alert.tails import BEYOND, Array, Prior, Tail, deviate, fit, usual

ASSUMED = Tail(2.74, 0.25, 0.38)
"""Of deviates in runs without a tail of their own: beyond what t3, exponential and bimodal noise of 12 to 120 series
with 3 to 24 points showed down to 3e-5, of the newest point and of the largest of all splits before it."""
CHANGED = 1e-5
CREDIBLE = 1e-3
DEGREES = 2.0
"""Of freedom, with which Student's statistic is beyond all that noise too: the better bound in a short series."""
HUGE = 1e9
LEAST_PLACEBOS = 1000
"""Fewer show a tail so badly that, held for as heavy as it may be, it hides more than the assumed one."""
NOTHING = 1e-20
OUTLIER = 4.0
ROUNDS = 4
SHUFFLES = 6
MEANS = ((0.0, 0.0), (0.34, 0.34), (0.4, 0.4), (0.0, 0.4))
SYMMETRIC = 3
TRUSTED = 200.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What `weigh` found, an array over the series in every field.

    change: log of the later level over the earlier one at the split. split: index of the first later point (the last
    index is the newest point). slower, faster: one-sided p values, 1 where not judged. visible: the smallest log change
    of the newest point that the asked p value would show. earlier: number of points before the split. quiet: no noise
    was seen at all, so that only the practical percent speaks.
    """

    change: Array
    split: Array
    slower: Array
    faster: Array
    visible: Array
    earlier: Array
    quiet: Array


@dataclass(frozen=True, slots=True)
class _Model:
    """One way to see the run. points: [series, point]; within: see `_within`."""

    points: Array
    within: Array
    prior: Prior | None
    newest: tuple[Tail, Tail] | None = None
    older: tuple[Tail, Tail] | None = None


@dataclass(frozen=True, slots=True)
class _Splits:
    """Every split of every series: z is the normal deviate of the t statistic; over: the newest point is back."""

    z: Array
    change: Array
    error: Array
    degrees: Array
    earlier: Array
    legal: Array
    over: Array


def weigh(values: Array, *, minimum: int = 3, alarm: float = 1e-5, practical: float | Array = 0.0) -> Evidence:
    """Search every series for its newest change.

    A newer change takes the place of an older one only if it would be told by itself: it is beyond `practical`, and
    its p value is at most `alarm`. A drift is a chain of changes, each weaker than the one before, and the whole of it
    is what must be told.

    values: float64 [series, point, process] logarithms, the newest point last; NaN where there is no point or process.
    minimum: points that must lie before a change. alarm: the p value that `visible` is about. practical: relative
    change worth telling, one or an array [series].
    """
    values = _thinned(values)
    model = _best_model(values, minimum, alarm)
    start = np.zeros(len(values), dtype=np.int64)
    found = _search(model, start, minimum, alarm)
    for _ in range(ROUNDS):
        credible = np.minimum(found.slower, found.faster) < CREDIBLE
        later = _search(model, np.where(credible, found.split, start), minimum, alarm)
        told = (np.minimum(later.slower, later.faster) <= alarm) & (np.abs(np.expm1(later.change)) > practical)
        newer = credible & told
        if not newer.any():
            break
        start = np.where(newer, found.split, start)
        names = ("change", "split", "slower", "faster", "earlier", "quiet")
        found = replace(found, **{n: np.where(newer, getattr(later, n), getattr(found, n)) for n in names})
    return replace(found, visible=_visible(model, start, minimum, alarm))


def _thinned(values: Array) -> Array:
    """No earlier point with more processes than the newest of its series: those of five stray less than those of one,
    and would say nothing of what is usual for it."""
    known = np.isfinite(values)
    return np.where(np.cumsum(known, 2) <= known[:, -1:].sum(2, keepdims=True), values, np.nan)


def _best_model(values: Array, minimum: int, alarm: float) -> _Model:
    """Of some means of the processes, with the fitted and a firm prior, what shows the median series most.

    The mean of the faster processes is not that of all if their number changes, so it is tried only if it does not.
    """
    counts = np.isfinite(values).sum(2)
    equal = len(np.unique(counts[counts > 0])) <= 1
    models: list[_Model] = []
    for below, above in MEANS if equal else MEANS[:SYMMETRIC]:
        points = _points(values, below, above)
        if any(np.array_equal(points, model.points, equal_nan=True) for model in models):
            continue
        prior = usual(np.diff(points[:, :-1], axis=1))
        within = _within(values, points, prior)
        priors = (prior,) if prior is None else (prior, Prior(prior.mean, prior.mean, TRUSTED))
        for chosen in priors:
            model = _Model(points, within, chosen)
            models.append(replace(model, newest=_placebos(model, minimum)))
    if any(model.newest is None for model in models):
        return models[0]
    start = np.zeros(len(values), dtype=np.int64)
    best = min(models, key=lambda model: float(np.nanmedian(_visible(model, start, minimum, alarm))))
    return replace(best, older=_shuffled(best, minimum))


def _points(values: Array, below: float, above: float) -> Array:
    """The mean of each point's processes without those fractions of the fastest and of the slowest."""
    known = np.isfinite(values)
    counts = known.sum(2)[:, :, None]
    rank = np.arange(values.shape[2])
    middle = (rank >= np.floor(counts * below)) & (rank < counts - np.floor(counts * above))
    total = np.where(middle, np.sort(values, 2), 0.0).sum(2)  # NaN sorts last
    return np.where(counts[:, :, 0] > 0, total / np.maximum(middle.sum(2), 1), np.nan)


def _within(values: Array, points: Array, prior: Prior | None) -> Array:
    """The variance of the newest point that the spread of a series' processes leads one to expect.

    In a run it is the usual variance, times how far the processes of this series stray beyond the usual, moderated as
    every variance is: a mean of some of them varies less than all say, and one outlier is not the noise of a series.
    """
    known = np.isfinite(values)
    counts = known.sum(2)
    strays = np.where(known, np.abs(values - points[:, :, None]), 0.0)
    free = np.maximum(counts - 1, 0).sum(1)
    if prior is None:
        return (strays**2).sum((1, 2)) / np.maximum(free, 1) / np.maximum(counts[:, -1], 1)
    mean = strays.sum((1, 2)) / np.maximum(free, 1)
    common = float(np.median(mean[free > 0])) if (free > 0).any() else 0.0
    if common == 0:
        return np.zeros(len(values))
    mean = np.minimum(strays, OUTLIER * common).sum((1, 2)) / np.maximum(free, 1)
    beyond = (mean / np.median(mean[free > 0])) ** 2
    return prior.mean * (free * beyond + prior.degrees) / (free + prior.degrees)


def _search(model: _Model, start: Array, minimum: int, alarm: float) -> Evidence:
    """The best split of what lies from `start` on; half of the error rate belongs to the newest point.

    Of several that would be told, it is the one with the largest deviate: of p values that far out, nobody knows which
    is the smaller.
    """
    splits = _splits(model, start, minimum)
    p_slower, p_faster = (_p_values(model, splits, sign) for sign in (1, -1))
    either = np.minimum(p_slower, p_faster)
    told = np.where(either <= alarm, np.abs(splits.z), 0.0)
    at = np.where(told.any(1), np.argmax(told, 1), np.argmin(either, 1))
    at = np.where(either.min(1) >= CREDIBLE, either.shape[1] - 1, at)[:, None]
    change, slower, faster, earlier, error = (
        np.take_along_axis(found, at, 1)[:, 0]
        for found in (splits.change, p_slower, p_faster, splits.earlier, splits.error)
    )
    return Evidence(change, at[:, 0] + 1, slower, faster, np.zeros_like(change), earlier, error == 0)


def _p_values(model: _Model, splits: _Splits, sign: int) -> Array:
    """One-sided, paid for the number of splits searched; 1 where the split is not legal or the change is over."""
    side = 0 if sign > 0 else 1
    z = sign * splits.z
    older = splits.legal[:, :-1].sum(1, keepdims=True)
    p_older = np.minimum(special.ndtr(-z[:, :-1]) * np.maximum(older, 1), 1)
    p_newest = special.ndtr(-z[:, -1:])
    if model.newest is None or model.older is None:
        few = deviate(splits.change, splits.error, _few(splits.degrees))
        assumed = np.minimum(_assumed(z), special.ndtr(-sign * few))
    if model.newest is None:
        p_newest = np.maximum(p_newest, assumed[:, -1:])
    else:
        p_newest = np.maximum(p_newest, model.newest[side].survival(z[:, -1:]))
    if model.older is None:
        p_older = np.maximum(p_older, assumed[:, :-1])
    else:
        # The tail is that of the largest of all splits, so it has paid for them.
        p_older = np.maximum(special.ndtr(-z[:, :-1]), model.older[side].survival(z[:, :-1]))
    p = np.concatenate((p_older, p_newest), 1) * np.where(older > 0, 2, 1)
    return np.where(splits.legal & ~splits.over, np.minimum(p, 1), 1.0)


def _assumed(z: Array) -> Array:
    """What ASSUMED bounds p values by: by nothing less than its beginning, where it tells nothing."""
    return np.where(z > ASSUMED.start, ASSUMED.survival(z), BEYOND)


def _splits(model: _Model, start: Array, minimum: int) -> _Splits:
    points = model.points
    index = np.arange(points.shape[1])
    known = np.isfinite(points) & (index >= start[:, None])
    count = np.maximum(known.sum(1, keepdims=True), 1)
    filled = np.where(known, points, 0.0)
    filled = np.where(known, filled - filled.sum(1, keepdims=True) / count, 0.0)
    earlier = np.cumsum(known, 1)[:, :-1]
    later = known.sum(1, keepdims=True) - earlier
    n1, n2 = np.maximum(earlier, 1), np.maximum(later, 1)
    sums, squares = np.cumsum(filled, 1), np.cumsum(filled**2, 1)
    mean1, mean2 = sums[:, :-1] / n1, (sums[:, -1:] - sums[:, :-1]) / n2
    residual = squares[:, -1:] - n1 * mean1**2 - n2 * mean2**2
    residual = np.where(residual < NOTHING, 0.0, residual)
    free = np.maximum(count - 2, 1).astype(float)
    variance, degrees = _moderated(residual / free, free, model.prior)
    variance = np.maximum(variance, model.within[:, None])
    error = np.sqrt(variance * (1 / n1 + 1 / n2))
    change = mean2 - mean1
    z = deviate(change, error, degrees)
    legal = (earlier >= minimum) & known[:, 1:] & known[:, -1:]
    back = filled[:, -1:] - mean1
    over = back * np.sign(change) < 0.5 * np.abs(change)
    return _Splits(z, change, error, degrees, earlier, legal, over)


def _few(degrees: Array) -> Array:
    """One of the degrees of freedom is not trusted, and no more than DEGREES are."""
    return np.clip(degrees - 1, 1, DEGREES)


def _moderated(variance: Array, degrees: Array, prior: Prior | None) -> tuple[Array, Array]:
    if prior is None:
        return variance, degrees
    total = degrees + prior.degrees
    return (degrees * variance + prior.degrees * prior.variance) / total, total


def _placebos(model: _Model, minimum: int) -> tuple[Tail, Tail] | None:
    """Tails of every earlier point against the other earlier ones of its series; None if there are too few."""
    earlier, within = _steady(model, minimum)
    known = np.isfinite(earlier)
    count = known.sum(1, keepdims=True)
    use = known & (count >= 3)
    if use.sum() < LEAST_PLACEBOS:
        return None
    centre = np.where(known, earlier, 0.0).sum(1, keepdims=True) / np.maximum(count, 1)
    deviation = np.where(known, earlier - centre, 0.0)
    others = np.maximum(count - 1, 1)
    lost = deviation**2 * count / others
    free = np.maximum(others - 1, 1).astype(float)
    rest = np.maximum((deviation**2).sum(1, keepdims=True) - lost, 0.0)
    variance, degrees = _moderated(rest / free, free, model.prior)
    variance = np.maximum(variance, within[:, None])
    z = deviate(deviation * count / others, np.sqrt(variance * (1 + 1 / others)), degrees)[use]
    return fit(z), fit(-z)


def _shuffled(model: _Model, minimum: int) -> tuple[Tail, Tail] | None:
    """Tails of the largest deviate of all splits before the newest point, in earlier points put in random order."""
    earlier, within = _steady(model, minimum)
    long = np.isfinite(earlier).sum(1) > minimum + 1
    earlier, within = earlier[long], within[long]
    if len(earlier) * SHUFFLES < LEAST_PLACEBOS:
        return None
    rng = np.random.default_rng(20261128)
    start = np.zeros(len(earlier), dtype=np.int64)
    highest, lowest = [], []
    for _ in range(SHUFFLES):
        order = np.where(np.isfinite(earlier), rng.random(earlier.shape), -1.0)
        mixed = np.take_along_axis(earlier, np.argsort(order, 1), 1)  # what is missing stays in front
        found = _splits(replace(model, points=mixed, within=within), start, minimum)
        use = found.legal[:, :-1] & ~found.over[:, :-1]
        highest.append(np.where(use, found.z[:, :-1], 0.0).max(1))
        lowest.append(np.where(use, found.z[:, :-1], 0.0).min(1))
    return fit(np.concatenate(highest)), fit(-np.concatenate(lowest))


def _steady(model: _Model, minimum: int) -> tuple[Array, Array]:
    """The earlier points of the series that have not changed plainly within them, and the `within` of those series.

    One stray point is noise, which is what is looked for: a change is plain if it is there without the point farthest
    out. The last one may be the first after a change, and is not left out.
    """
    if model.points.shape[1] < 3:  # one point has not changed
        return model.points[:, :-1], model.within
    before = replace(model, points=_without_one(model.points[:, :-1]), newest=None, older=None)
    splits = _splits(before, np.zeros(len(model.points), dtype=np.int64), minimum)
    loudest = np.abs(np.where(splits.legal & ~splits.over, splits.z, 0.0))
    older = splits.legal[:, :-1].sum(1)
    p = special.ndtr(-np.stack((loudest[:, :-1].max(1, initial=0.0), loudest[:, -1])))
    p *= np.stack((np.maximum(older, 1), np.ones_like(older))) * np.where(older > 0, 2, 1)
    steady = p.min(0) > CHANGED
    return model.points[steady, :-1], before.within[steady]


def _without_one(points: Array) -> Array:
    """NaN for the point of every series that is farthest from the mean of all, but for the last."""
    known = np.isfinite(points)
    mean = np.where(known, points, 0.0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    far = np.where(known[:, :-1], np.abs(points - mean)[:, :-1], -1.0)
    left = points.copy()
    np.put_along_axis(left, np.argmax(far, 1)[:, None], np.nan, 1)
    return left


def _visible(model: _Model, start: Array, minimum: int, alarm: float) -> Array:
    """The smallest log change of the newest point with a p value of `alarm`; NaN where it is not judged."""
    points = model.points[:, :-1]
    known = np.isfinite(points) & (np.arange(points.shape[1]) >= start[:, None])
    count = known.sum(1)
    centre = np.where(known, points, 0.0).sum(1) / np.maximum(count, 1)
    squares = np.where(known, (points - centre[:, None]) ** 2, 0.0).sum(1)
    free = np.maximum(count - 1, 1).astype(float)
    variance, degrees = _moderated(squares / free, free, model.prior)
    variance = np.maximum(variance, model.within)
    half = alarm / 2
    z = max((stats.norm.isf(half), *(tail.deviate(half) for tail in model.newest or (ASSUMED,))))
    t = stats.t.isf(stats.norm.sf(min(z, 37.0)), degrees)
    if model.newest is None:
        few = stats.t.isf(half, _few(degrees))
        t = np.where(np.isfinite(t), np.minimum(t, few), few)
    t = np.where(np.isfinite(t), np.minimum(t, HUGE), HUGE)  # scipy answers -inf far out in the tail of few degrees
    spread = np.sqrt(variance * (1 + 1 / np.maximum(count, 1)))
    # Every change of an exact series is visible, however many deviations an alarm takes.
    limit = np.multiply(spread, t, out=np.zeros_like(spread), where=spread > 0)
    return np.where(count >= minimum, limit, np.nan)
