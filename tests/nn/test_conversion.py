"""From a model to a band-limited one: what is swapped, what is kept and why, and that an error changes nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import spectralkernels as sk
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.masks import energy_index
from spectralkernels.nn.rates import rate_1d, rate_2d
from spectralkernels.spectra import half, kept_1d, kept_2d


class Odd(nn.Module):
    """One convolution of every kind that a conversion meets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 5, padding=2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.twice
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.pruned = nn.Conv2d(4, 4, 3, padding=1)
        prune.l1_unstructured(self.pruned, "weight", 0.5)
        self.point = nn.Conv2d(4, 4, 1)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU())
        self.patched = nn.Conv2d(4, 4, 3, padding=1)
        self.patched.forward = lambda x: x
        self.up = nn.ConvTranspose2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.twice(self.stem(x)))
        x = self.pruned(self.normed(x))
        return self.up(self.patched(self.block(self.dilated(self.point(x)))))


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def test_every_decision_is_told(seed: int):
    model = Odd()
    done = sk.nn.convert(model, compression=0.0)
    assert done.model is model
    assert done.swapped == ("stem", "dilated", "block.0")
    reasons = {decision.name: decision.because for decision in done.decisions if not decision.swapped}
    for name, words in {
        "twice": "used in several places (twice, again)",
        "normed": "its weight is parametrised",
        "pruned": "its weight is parametrised or pruned",
        "point": "its kernel has one tap",
        "patched": "its forward has been replaced",
        "up": "ConvTranspose2d has no band-limited twin",
    }.items():
        assert words in reasons.pop(name)
    assert not reasons
    assert all(decision.name in str(done) for decision in done.decisions)


def test_without_compression_a_converted_model_answers_as_before(seed: int):
    model, x = Odd(), torch.randn(2, 3, 9, 10)
    model.eval()
    want = model(x)
    sk.nn.convert(model, compression=0.0)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)


def test_layers_stay_the_objects_that_they_were(seed: int):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    before, parameters, called = list(model), list(model.parameters()), []
    model[0].register_forward_hook(lambda *_: called.append("hook"))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    state = copy.deepcopy(model.state_dict())
    sk.nn.convert(model, compression=0.5)
    assert all(now is then for now, then in zip(model, before, strict=True))
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    model.load_state_dict(state)
    model(torch.randn(1, 3, 6, 6)).sum().backward()
    optimiser.step()
    assert called == ["hook"]
    assert not torch.equal(model[0].weight, state["0.weight"])
    again = pickle.loads(pickle.dumps(copy.deepcopy(nn.Sequential(model[2]))))
    assert again[0].compression == 0.5


def test_a_copy_leaves_the_model_alone(seed: int):
    model = Odd()
    del model.pruned  # torch cannot copy it
    before = classes(model)
    done = sk.nn.convert(model, compression=0.5, copy=True)
    assert classes(model) == before
    assert type(done.model.stem) is sk.nn.BandLimitedConv2d
    with torch.no_grad():
        done.model.stem.weight.zero_()
    assert model.stem.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("1*", ("1.0",)),
        (lambda name, module: module.kernel_size == (5, 5), ("0",)),
        (nn.Conv1d, ("2",)),
        ((nn.Conv1d, nn.Conv2d), ("0", "1.0", "2")),
    ],
)
def test_where(where, expected: tuple[str, ...]):
    model = nn.Sequential(nn.Conv2d(1, 1, 5), nn.Sequential(nn.Conv2d(1, 1, 3)), nn.Conv1d(1, 1, 3))
    done = sk.nn.convert(model, compression=0.5, where=where)
    assert done.swapped == expected
    assert len(done.decisions) == 3


def test_a_model_that_is_a_convolution_and_one_tap_kernels(seed: int):
    point = nn.Conv2d(2, 2, 1)
    assert not sk.nn.convert(point, compression=0.5).swapped
    assert sk.nn.convert(point, compression=0.5, pointwise=True).swapped == ("",)
    assert point(torch.randn(1, 2, 8, 8)).shape == (1, 2, 8, 8)
    again = sk.nn.convert(point, compression=0.1)
    assert not again.swapped and "spectral already" in str(again) and point.compression == 0.5


def failing(name: str, module: nn.Module) -> bool:
    if name == "block.0":
        raise KeyError("planted")
    return True


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compression": 50.0}, sk.RangeError, r"compression must lie in \[0, 1\)"),
        (
            {"compression": 0.5, "where": "layer9*"},
            sk.RangeError,
            r"where='layer9\*' matches none of the convolutions stem",
        ),
        ({"compression": 0.5, "where": 3}, sk.DtypeError, "where must be a pattern"),
        ({"compression": 0.5, "where": failing}, KeyError, "planted"),
        ({"compression": "0.5"}, sk.DtypeError, "compression must be a number, got '0.5'"),
        ({"compression": 0.5, "grid": "tite"}, sk.RangeError, "grid must be one of tight"),
        ({"compression": 0.5, "impl": "fast"}, sk.RangeError, "impl must be 'auto' or one of dft_gemm, .*, got 'fast'"),
    ],
)
def test_an_error_converts_nothing(options: dict, error: type[Exception], message: str):
    model = Odd()
    before = classes(model)
    with pytest.raises(error, match=message):
        sk.nn.convert(model, **options)
    assert classes(model) == before


def test_a_model_without_convolutions_is_an_error():
    with pytest.raises(sk.RangeError, match="Linear has no convolution"):
        sk.nn.convert(nn.Linear(2, 2), compression=0.5)
    for of in (lambda m: sk.nn.set_compression(m, 0.5), lambda m: sk.nn.freeze_from_energy(m, [])):
        with pytest.raises(sk.RangeError, match="Conv2d has no band-limited layer"):
            of(nn.Conv2d(1, 1, 3))
    with pytest.raises(sk.RangeError, match="Linear called no"):
        sk.nn.report(nn.Linear(2, 2), torch.randn(1, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: sk.nn.convert(3, compression=0.5), "model must be a torch.nn.Module, got 3"),
        (lambda m: sk.nn.set_compression("m", 0.5), "model must be a torch.nn.Module, got 'm'"),
        (lambda m: sk.nn.report(None, torch.ones(1)), "model must be a torch.nn.Module, got None"),
        (lambda m: sk.diagnose.maximum_gain(3, torch.ones(3, 4, 4)), "model must be a torch.nn.Module"),
        (lambda m: sk.diagnose.maximum_gain(m, "natural"), "probe must be a tensor, got 'natural'"),
        (lambda m: sk.nn.set_compression(m, None), "compression must be a number, got None"),
        (lambda m: sk.nn.set_compression(m, {"0": "x"}), "compression must be a number, got 'x'"),
        (lambda m: sk.nn.freeze_from_energy(m, [], energy="a"), "energy must be a number, got 'a'"),
        (lambda m: sk.nn.freeze_from_energy(m, 3), "batches must be something to iterate over, .*, got 3"),
        (lambda m: sk.nn.report(m, torch.ones(1), repeats="a"), "repeats must be an integer, got 'a'"),
        (lambda m: sk.nn.report(m, "x"), "the input of 0 must be a tensor, got 'x'"),
        (lambda m: sk.nn.PHConv2d(4, 4, 3, n="2"), "n must be an integer, got '2'"),
        (lambda m: sk.nn.BandLimitedConv1d(1, 1, 3, causal="yes"), "causal must be True or False, got 'yes'"),
    ],
)
def test_wrong_kinds_are_named(call, message: str):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(sk.DtypeError, match=message):
        call(model)
    assert [layer.compression for layer in (model[0], model[3])] == [0.5, 0.5]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- rates ----------------------------------------------------------------------------------------------------------


def small(compression: float = 0.5) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, (3, 5), padding="same")
    )
    sk.nn.convert(model, compression=compression)
    return model


def test_rates_are_set_by_number_by_name_and_by_where():
    model = small()
    assert sk.nn.set_compression(model, 0.8) == {"0": 0.8, "3": 0.8}
    assert sk.nn.set_compression(model, 0.1, where="3") == {"3": 0.1}
    assert (model[0].compression, model[3].compression) == (0.8, 0.1)
    sk.nn.set_compression(model, {"0": 0.25, "3": 0.75})
    for bad, message in (
        ({"0": 0.5, "1": 0.5}, "'1' is no band-limited layer; known: 0, 3"),
        ({"0": 0.5, "3": 1.5}, "compression must lie in"),
        (-0.1, "compression must lie in"),
    ):
        with pytest.raises(sk.RangeError, match=message):
            sk.nn.set_compression(model, bad)
    with pytest.raises(sk.RangeError, match="matches none of the band-limited layers 0, 3"):
        sk.nn.set_compression(model, 0.5, where="9")
    with pytest.raises(sk.RangeError, match="where must be left out"):
        sk.nn.set_compression(model, {"0": 0.5}, where="0")
    assert (model[0].compression, model[3].compression) == (0.25, 0.75)


def test_a_rate_keeps_just_the_index_it_was_made_for():
    for n in (1, 2, 7, 8, 33, 64):
        for k in range(1, half(n) + 1):
            assert kept_2d(n, rate_2d(k, (n, n))) == k
            assert kept_1d(n, rate_1d(k, n)) == k
    assert kept_2d(40, rate_2d(3, (40, 12))) >= 3


def test_a_dilated_layer_freezes_and_reports_on_the_grid_of_its_reach(seed: int):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=4, dilation=4), nn.Conv2d(3, 4, 3, stride=2, padding=1))
    sk.nn.convert(model, compression=0.0)
    x = torch.randn(2, 2, 12, 12)
    rates = sk.nn.freeze_from_energy(model, [x], energy=0.5)
    n = conv_band((12, 12), (9, 9), compression=0.0, padding=4).n
    assert n == (16, 16)
    index = int(energy_index(x, n, 0.5))
    assert kept_2d(16, rates["0"]) == index
    first, second = sk.nn.report(model, x, repeats=1).layers
    assert first.achieved == pytest.approx(1 - (2 * index - 1) * index / (16 * 9))
    assert 0 < second.flops and first.native_flops == 2 * 2 * 3 * 2 * 9 * 144


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_frozen_rates_hold_the_energy_of_every_batch(energy: float, seed: int):
    model = small()
    batches = [torch.randn(2, 2, 12, 12).cumsum(-1).cumsum(-2) for _ in range(3)]
    model.train()
    statistics = model[1].running_mean.clone()
    rates = sk.nn.freeze_from_energy(model, [(x, "label") for x in batches], energy=energy)
    assert model.training and torch.equal(model[1].running_mean, statistics)
    n = conv_band((12, 12), (3, 3), compression=0.0, padding=1).n
    wanted = max(int(energy_index(x, (n[0], n[1]), energy)) for x in batches)
    assert kept_2d(n[0], rates["0"]) == wanted
    assert rates == {"0": model[0].compression, "3": model[3].compression}
    if energy == 1.0:
        assert rates["0"] == 0.0


def test_more_energy_keeps_more(seed: int):
    model, batches = small(), [torch.randn(2, 2, 16, 16).cumsum(-1).cumsum(-2)]
    low, high = (sk.nn.freeze_from_energy(model, batches, energy=e)["0"] for e in (0.6, 0.99))
    assert low > high


def test_series_are_frozen_too(seed: int):
    model = nn.Sequential(nn.Conv1d(2, 3, 5, padding=2))
    sk.nn.convert(model, compression=0.5)
    x = torch.randn(2, 2, 30).cumsum(-1)
    rate = sk.nn.freeze_from_energy(model, [x], energy=0.9)["0"]
    power = torch.fft.rfft(x.double(), n=32).abs().square().sum((0, 1)).cumsum(0)
    assert kept_1d(32, rate) == int((power < 0.9 * power[-1]).sum()) + 1


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "at least one batch, got none"),
        ([torch.zeros(1, 2, 8, 8)], {"energy": 90}, "divide a percentage by 100"),
        ([torch.zeros(1, 2, 8, 8)], {"energy": 0.0}, r"energy must lie in \(0, 1\]"),
        ([torch.zeros(1, 2, 8, 8), {1}], {}, "a batch must be a tensor"),
        ([torch.zeros(1, 9, 8, 8)], {}, "input channels"),
    ],
)
def test_a_failed_freeze_changes_nothing(batches: list, options: dict, message: str):
    model = small(0.3).train()
    with pytest.raises(sk.SpectralKernelsError, match=message):
        sk.nn.freeze_from_energy(model, batches, **options)
    assert model.training and model[0].compression == model[3].compression == 0.3
    assert not model[0]._forward_pre_hooks


# --- report ---------------------------------------------------------------------------------------------------------


def test_a_report_has_a_row_for_every_convolution(seed: int):
    model = nn.Sequential(
        nn.Conv2d(2, 8, 7, padding=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()
    )
    sk.nn.convert(model, compression=0.5, where="0", impl="dft_gemm")  # what auto takes here saves something else
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 2, 16, 16)
    told = sk.nn.report(model, x, repeats=1)
    first, second = told.layers
    assert (first.name, first.layer, first.input, first.compression) == ("0", "BandLimitedConv2d", (2, 2, 16, 16), 0.5)
    band = conv_band((16, 16), (7, 7), compression=0.5, padding=3)
    assert first.achieved == band.achieved_compression
    spectrum = 2 * 2 * band.modes * 2 * 4  # planes, complex float32
    assert first.saved_bytes == spectrum + model[0].weight.numel() * 4
    assert first.native_saved_bytes == (x.numel() + model[0].weight.numel()) * 4
    assert first.native_flops == 2 * 2 * 8 * 16 * 16 * 2 * 49
    assert (second.compression, second.achieved, second.flops) == (None, None, second.native_flops)
    sk.nn.convert(model, compression=0.5, where="3")
    spectral = sk.nn.report(model, x, repeats=1).layers[1]
    whole = copy.deepcopy(model)
    whole[3].stride = (1, 1)
    assert spectral.flops < sk.nn.report(whole, x, repeats=1).layers[1].flops
    assert second.native_flops == 2 * 2 * 8 * 7 * 7 * 8 * 9
    assert min(first.seconds, first.native_seconds, second.seconds) > 0
    assert told.total("flops") == first.flops + second.flops
    assert "BandLimitedConv2d" in str(told) and "all" in str(told)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad is None and model.training
    with pytest.raises(sk.RangeError, match="repeats must be at least 1"):
        sk.nn.report(model, x, repeats=0)


def test_saved_bytes_fall_with_the_rate(seed: int):
    model, x = small(), torch.randn(2, 2, 32, 32)
    model[0].impl = model[3].impl = "dft_gemm"
    saved = []
    for rate in (0.25, 0.5, 0.8):
        sk.nn.set_compression(model, rate)
        saved.append(sk.nn.report(model, x, repeats=1).total("saved_bytes"))
    assert saved == sorted(saved, reverse=True) and len(set(saved)) == 3
