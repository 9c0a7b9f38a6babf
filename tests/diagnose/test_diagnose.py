"""Diagnosis: the toy networks whose response is known (M63), the stable softmax, windows (T50), curves (M68)."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import spectralkernels as sk
from spectralkernels import diagnose
from spectralkernels.diagnose import Impulse, Label, frequency_response, label_curve, maximum_gain


def gaussian(side: int) -> Tensor:
    taps = torch.exp(-(torch.arange(side, dtype=torch.float64) - side // 2).square() / 2)
    return torch.outer(taps, taps) / taps.sum() ** 2


def toy(kernel: Tensor) -> nn.Sequential:
    """One channel in, a symmetric filter, ReLU: the paper's toy network."""
    conv = nn.Conv2d(1, 1, kernel.shape[0], bias=False, padding="same").double()
    conv.weight = nn.Parameter(kernel[None, None].clone())
    return nn.Sequential(conv, nn.ReLU())


def unit(y: int, x: int, size: int = 16) -> Tensor:
    projection = torch.zeros(1, 1, size, size, dtype=torch.float64)
    projection[..., y, x] = 1.0
    return projection


def centred(image: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.fft2(image).abs(), dim=(-2, -1))


def test_m63_an_active_unit_answers_with_the_spectrum_of_the_filter(seed: int):
    kernel, x = gaussian(5), torch.rand(1, 16, 16, dtype=torch.float64)
    kernel = kernel * torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0]).double()  # no symmetry to hide a flip behind
    got = frequency_response(toy(kernel), x, projection=unit(8, 7))
    padded = torch.zeros(16, 16, dtype=torch.float64)
    padded[:5, :5] = kernel
    torch.testing.assert_close(10 ** (got.decibels[0] / 20), centred(padded), rtol=0, atol=1e-10)
    assert torch.equal(got.gradient[0, 6:11, 5:10], kernel)
    low_pass = frequency_response(toy(gaussian(5)), x, projection=unit(8, 8)).decibels[0]
    assert low_pass.argmax() == 8 * 16 + 8  # the mean
    assert got.window == "none" and got.projection == "given"


def test_m63_a_dead_unit_answers_exactly_zero(seed: int):
    x = -torch.rand(1, 16, 16, dtype=torch.float64) - 0.1
    got = frequency_response(toy(gaussian(5)), x, projection=unit(8, 8))
    assert not got.gradient.any()
    assert bool((got.decibels == 20 * torch.log10(torch.tensor(1e-12)).double()).all())
    assert maximum_gain(toy(gaussian(5)), x, projection=unit(8, 8)) == pytest.approx(-240.0)


def test_m63_ones_sum_the_answers_of_all_active_units(seed: int):
    x = torch.randn(1, 16, 16, dtype=torch.float64)
    model = toy(gaussian(3))
    total = frequency_response(model, x, projection="ones").gradient
    active = (model(x[None])[0, 0] > 0).nonzero().tolist()
    parts = [frequency_response(model, x, projection=unit(i, j)).gradient for i, j in active]
    torch.testing.assert_close(total, torch.stack(parts).sum(0))
    largest = frequency_response(model, x, projection="one_hot").gradient
    where = int(model(x[None]).argmax())
    torch.testing.assert_close(largest, frequency_response(model, x, projection=unit(*divmod(where, 16))).gradient)


def test_t50_the_impulse_alone_is_windowed(seed: int):
    impulse = Impulse(1, 16, 16)
    image = impulse.image()
    assert image.sum() == image[0, 8, 8] == 1.0
    model = toy(gaussian(5))
    by_impulse = frequency_response(model, impulse, projection="ones")
    by_image = frequency_response(model, image.double(), projection="ones")
    assert (by_impulse.window, by_image.window) == ("hann", "none")
    torch.testing.assert_close(by_impulse.gradient, by_image.gradient)
    hann = torch.hann_window(16, periodic=False, dtype=torch.float64)
    want = centred(by_image.gradient * torch.outer(hann, hann))
    torch.testing.assert_close(10 ** (by_impulse.decibels / 20), want, rtol=0, atol=1e-10)
    assert not torch.allclose(by_impulse.decibels, by_image.decibels)
    offset = Impulse(3, 5, 4, value=0.5, background=-1.0).image()
    assert offset.shape == (3, 5, 4) and offset[1, 2, 2] == 0.5 and offset[1, 0, 0] == -1.0


class Classifier(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(4 * 36, 5)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.scale


def test_the_projection_of_the_softmax_is_its_winner_over_itself(seed: int):
    """p_k = 1 / s_k of s = softmax f, as the paper writes it, and as the stable logarithm."""
    model, x = Classifier().double(), torch.randn(3, 8, 8, dtype=torch.float64)

    def written(output: Tensor) -> Tensor:
        s = torch.softmax(output, dim=1)
        k = int(s.argmax())
        return s[0, k] / float(s.detach()[0, k])

    got, want = frequency_response(model, x), frequency_response(model, x, projection=written)
    torch.testing.assert_close(got.decibels, want.decibels)
    gains = got.decibels.flatten(1).max(1).values
    torch.testing.assert_close(got.maximum_gain, gains)
    assert maximum_gain(model, x) == pytest.approx(float(gains.mean()))


def test_t49_a_saturated_softmax_lies_at_the_floor_and_decibels_are_of_amplitudes(seed: int):
    x = torch.randn(3, 8, 8)
    torch.manual_seed(seed)
    saturated = maximum_gain(Classifier(1e6), x)
    assert saturated == pytest.approx(-240.0)
    model = nn.Sequential(nn.Flatten(0), nn.Linear(3 * 64, 1)).double()
    one = maximum_gain(model, x.double(), projection="ones")
    with torch.no_grad():
        model[1].weight *= 10
    assert maximum_gain(model, x.double(), projection="ones") == pytest.approx(one + 20.0)


def test_the_model_comes_back_as_it_was(seed: int):
    model = Classifier().train()
    model.body[1].eval()
    mean = model.body[1].running_mean.clone()
    first = maximum_gain(model, Impulse(3, 8, 8))
    assert maximum_gain(model, Impulse(3, 8, 8)) == first  # no dropout, no statistics
    assert [m.training for m in (model, model.body, model.body[1], model.body[3])] == [True, True, False, True]
    assert torch.equal(model.body[1].running_mean, mean)
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert maximum_gain(model, Impulse(3, 8, 8)) == first
    with pytest.raises(sk.ShapeError, match="not take a probe"):
        maximum_gain(model, Impulse(4, 8, 8))
    assert model.training


def test_compression_lowers_the_high_frequencies_of_the_response(seed: int):
    """M69: what a band-limited layer drops has no way through the network."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False)).double()
    sk.nn.convert(model, compression=0.8)
    x, p = torch.randn(1, 17, 17, dtype=torch.float64), torch.randn(1, 1, 17, 17, dtype=torch.float64)
    response = frequency_response(model, x, projection=p).decibels[0]
    high = torch.cat([response[:3].flatten(), response[:, :3].flatten()]).mean()
    assert high < response[6:11, 6:11].mean() - 3.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: frequency_response(m, torch.randn(2, 3, 8, 8)), sk.ShapeError, "probe must be one image"),
        (lambda m: frequency_response(m, torch.randn(8, 8)), sk.ShapeError, r"probe must be one image.*got \[8, 8\]"),
        (lambda m: frequency_response(m, torch.randn(5, 8, 8)), sk.ShapeError, r"not take a probe of \[1, 5, 8, 8\]"),
        (lambda m: frequency_response(m, torch.randn(3, 1, 1)), sk.ShapeError, "not take a probe"),
        (lambda m: frequency_response(m, torch.ones(3, 8, 8).long()), sk.DtypeError, "probe must be one of"),
        (lambda m: frequency_response(m, Impulse(3, 0, 8)), sk.ShapeError, "at least one channel and pixel"),
        (lambda m: frequency_response(m, Impulse(3, 8, 8), eps=0.0), sk.RangeError, "eps must be above 0"),
        (lambda m: frequency_response(m, Impulse(3, 8, 8), projection="max"), sk.RangeError, "projection must be"),
        (
            lambda m: frequency_response(m, Impulse(3, 8, 8), projection=torch.ones(2)),
            sk.ShapeError,
            r"shape of the output \[1, 5\]",
        ),
        (
            lambda m: frequency_response(m, Impulse(3, 8, 8), projection=lambda y: y),
            sk.ShapeError,
            "must make one number",
        ),
        (lambda m: frequency_response(m.body[0], Impulse(3, 8, 8)), sk.ShapeError, r"needs an output \[1, class\]"),
        (
            lambda m: frequency_response(m, Impulse(3, 8, 8), projection=lambda y: y.detach().sum()),
            sk.RangeError,
            "does not depend on the probe",
        ),
        (lambda m: label_curve([1.0] * 7), sk.RangeError, "at least 8 gains"),
        (lambda m: label_curve([1.0] * 8 + [float("nan")]), sk.RangeError, "gains must be finite"),
        (lambda m: label_curve([1.0] * 8, flat=0.0), sk.RangeError, "thresholds must be above 0"),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call(Classifier())


# --- curves ---------------------------------------------------------------------------------------------------------


def curves(draw: random.Random, epochs: int) -> dict[Label, list[float]]:
    """One curve for each rule, with a little noise."""

    def noisy(values: list[float], sigma: list[float]) -> list[float]:
        return [value + draw.gauss(0.0, s) for value, s in zip(values, sigma, strict=True)]

    quiet, loud = [0.1] * epochs, [20.0] * epochs
    share = [i / (epochs - 1) for i in range(epochs)]
    middle = epochs // 2
    return {
        Label.RATE_TOO_HIGH: noisy([10 * t for t in share], loud),
        Label.RATE_TOO_LOW: noisy([20 * t for t in share], quiet),
        Label.CONVERGING: noisy([min(20.0, 40 * t) for t in share], quiet),
        Label.OVERFITTING: noisy([10.0] * epochs, quiet[:middle] + loud[middle:]),
        Label.UNDECIDED: noisy([-20 * t for t in share], quiet),
    }


@pytest.mark.parametrize("epochs", [16, 25, 60])
def test_m68_every_rule_reads_its_curve(epochs: int, seed: int):
    for wanted, gains in curves(random.Random(seed), epochs).items():
        got = label_curve(gains)
        assert got.label is wanted, (got, gains)
        assert label_curve([gain + 100.0 for gain in gains]).label is wanted  # no absolute score


def test_a_trend_is_no_variability():
    got = label_curve([float(i) ** 1.5 for i in range(20)])
    assert max(got.variability) < 0.01 * got.rise[0]
    assert got.rise[1] > got.rise[0] > 0
    assert label_curve([0.0, 9.0] * 10).variability[0] == pytest.approx((18**2 / 6) ** 0.5)


def test_a_callback_follows_a_training_loop(seed: int):
    model, x = Classifier(), torch.randn(3, 8, 8)
    gains = diagnose.GainCurve(x)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(8):
        optimiser.zero_grad()
        model(torch.randn(4, 3, 8, 8)).logsumexp(1).mean().backward()
        optimiser.step()
        assert gains(model) == gains.gains[-1]
    assert gains.label() == label_curve(gains.gains)
