"""What the curve of the Maximum Gain over epochs says of a training run, by the four rules of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from spectralkernels.checks import as_number, check_tensor, kind
from spectralkernels.diagnose.response import Impulse, Projection, maximum_gain
from spectralkernels.errors import DtypeError, RangeError


class Label(Enum):
    """The reading rules of section IV-C1, and what fits none of them."""

    RATE_TOO_HIGH = "variable throughout: the learning rate is too high"
    RATE_TOO_LOW = "rising steadily to the end: the learning rate is too low, or train longer"
    CONVERGING = "rising, then flat: converging"
    OVERFITTING = "quiet, then variable: strong overfitting, stop"
    UNDECIDED = "none of the four rules"


@dataclass(frozen=True, slots=True)
class Curve:
    """A label, and the numbers that it follows from, for the first and the second half of the curve, in dB.

    variability: of neighbouring epochs, without the trend. rise: of the straight line through the half, end to end.
    """

    label: Label
    variability: tuple[float, float]
    rise: tuple[float, float]


def label_curve(gains: Sequence[float], *, variable: float = 1.0, flat: float = 1.0) -> Curve:
    """Read a curve of Maximum Gains by the paper's four rules.

        variable in both halves            the learning rate is too high
        variable in the second half alone  strong overfitting
        rising in both, the second more than half as much as the first    the learning rate is too low
        rising in the first, less so or not in the second                 converging

    The variability of a half is the rms second difference over sqrt 6, the standard deviation of white noise, which a
    trend does not touch. "High is judged per model": gains are no absolute score, and thresholds are yours to set. The
    curve does not show underfitting.
    gains: one per epoch, dB, at least 8. variable: dB from which a half is variable. flat: dB of rise up to which it is
        flat.
    Raises: DtypeError on what is no number; RangeError on fewer or non-finite gains, or thresholds that
        are not positive.
    Source: Stamatescu and McDonnell 2018, section IV-C1; the thresholds are ours.
    """
    alone = isinstance(gains, (str, bytes)) or (isinstance(gains, Tensor) and gains.dim() == 0)
    if alone or not isinstance(gains, Iterable):
        raise DtypeError(f"gains must be a sequence of numbers, got {kind(gains)}")
    if isinstance(gains, Tensor):
        check_tensor("gains", gains)
    curve = torch.tensor([as_number("each of gains", each) for each in gains], dtype=torch.float64)
    if len(curve) < 8:
        raise RangeError(f"label_curve needs at least 8 gains, four in each half, got {len(curve)}")
    if not bool(torch.isfinite(curve).all()):
        raise RangeError("gains must be finite; a diverged run needs no diagnosis")
    if not (as_number("variable", variable) > 0.0 and as_number("flat", flat) > 0.0):
        raise RangeError(f"thresholds must be above 0 dB, got variable={variable}, flat={flat}")
    halves = (curve[: len(curve) // 2], curve[len(curve) // 2 :])
    (early, late), (first, second) = map(_variability, halves), map(_rise, halves)
    if late > variable:
        label = Label.RATE_TOO_HIGH if early > variable else Label.OVERFITTING
    elif first > flat and second > max(flat, first / 2):
        label = Label.RATE_TOO_LOW
    elif first > flat and second >= -flat:
        label = Label.CONVERGING
    else:
        label = Label.UNDECIDED
    return Curve(label, (early, late), (first, second))


class GainCurve:
    """A callback for anybody's training loop: call it with the model once an epoch, ask for the `label` at any time.

    probe, projection: as in `frequency_response`. gains: what was seen so far, dB.
    """

    def __init__(self, probe: Tensor | Impulse, *, projection: Projection = "log_softmax") -> None:
        self.probe, self.projection = probe, projection
        self.gains: list[float] = []

    def __call__(self, model: nn.Module) -> float:
        """Measure the model, remember its gain and return it."""
        self.gains.append(maximum_gain(model, self.probe, projection=self.projection))
        return self.gains[-1]

    def label(self, *, variable: float = 1.0, flat: float = 1.0) -> Curve:
        """What the gains so far say; see `label_curve`."""
        return label_curve(self.gains, variable=variable, flat=flat)


def _variability(half: Tensor) -> float:
    return float(half.diff(n=2).square().mean().sqrt()) / 6**0.5


def _rise(half: Tensor) -> float:
    """Of the least-squares line, from the first epoch of the half to its last."""
    epochs = torch.arange(len(half), dtype=torch.float64)
    centred = epochs - epochs.mean()
    slope = (centred * half).sum() / centred.square().sum()
    return float(slope) * (len(half) - 1)
