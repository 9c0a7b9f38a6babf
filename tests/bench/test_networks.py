"""The networks have the sizes that their papers and torchvision state, and the same answer whatever computes it."""

from __future__ import annotations

from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectralkernels as sk
from spectralbench.networks import load_network, load_networks
from spectralbench.networks.densenet import DenseNet
from spectralbench.networks.layers import KINDS, SpecNetConv2d, applied
from spectralbench.networks.resnet import ResNet18
from spectralbench.networks.spectral_representations import spectral_pooling_cnn
from spectralkernels.errors import RangeError

PARAMETERS = {
    "lenet": 21_840,
    "lenet_mnist": 431_080,
    "lenet_cifar": 145_578,
    "alexnet": 2_472_266,
    "vgg16": 14_728_266,
    "nin": 966_986,
    "resnet18": 11_173_962,
    "resnet18_spectral_pool": 11_173_962,
    "resnet18_diff_stride": 11_173_962 + 3 * 2,
    "resnet18_imagenet": 11_689_512,
    "densenet121": 1_000_618,
    "fcn": 271_154,
}
"""As published with the networks, or by adding up the layers that the papers list."""


@pytest.mark.parametrize("name", load_networks())
def test_answers_one_number_per_class(name: str, seed: int):
    network = load_network(name)
    model = network.build().eval()
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == PARAMETERS.get(name, counted)
    y = model(torch.randn(1, *network.input))
    assert y.shape == (1, network.classes)
    assert torch.isfinite(y).all() and y.std() > 0


@pytest.mark.parametrize(("depth", "parameters"), [(121, 7_978_856), (169, 14_149_480)])
def test_densenet_is_torchvisions_at_growth_32(depth: int, parameters: int):
    model = DenseNet(depth, growth=32, classes=1000, cifar=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert "features.denseblock3.denselayer24.norm2.running_var" in model.state_dict()


@pytest.mark.parametrize(
    ("reduction", "sides"),
    [("strided", [32, 16, 8, 4]), ("spectral_pool", [32, 16, 8, 4]), ("diff_stride", [32, 24, 20, 18])],
)
def test_reductions_of_a_resnet(reduction, sides: list[int]):
    """DiffStride's R = 4 keeps more than its stride says: finding 6 of the papers' notes, trap T23."""
    model = ResNet18(width=8, reduction=reduction)
    met: list[int] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda layer, inputs, y: met.append(y.shape[-1]))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert met == sides
    strides = [layer.strides for layer in model.modules() if isinstance(layer, sk.nn.DiffStride2d)]
    assert len(strides) == (3 if reduction == "diff_stride" else 0)
    assert all(stride.grad is not None and stride.grad.abs().sum() > 0 for stride in strides)


def test_resnet_is_torchvisions():
    assert "layer2.0.downsample.1.running_var" in ResNet18(width=8).state_dict()


def test_spectral_pooling_cnn_has_the_papers_widths_and_sides():
    """min(288, 96 + 32 m) filters and max(3, floor(gamma side)) samples: trap T19."""
    model = spectral_pooling_cnn()
    widths = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert widths == [128, 160, 192, 224, 256, 288]
    sides, side = [], 32
    for _ in range(6):
        side = max(3, floor(0.79 * side))
        sides.append((side, side))
    assert [layer.size for layer in model if isinstance(layer, sk.nn.SpectralPool2d)] == sides


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 2), dilation=(1, 3)),
        nn.Conv2d(4, 2, 1),
    )


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize("compression", [0.0, 0.5])
@pytest.mark.parametrize("size", [(13, 12), (17, 9)])
def test_one_function_by_three_ways(compression: float, size: tuple[int, int], seed: int):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    models = {kind: small().double() for kind in ("native", "band_limited", "band_limited_bits", "torch_fft", "exact")}
    answers = {}
    for kind, model in models.items():
        model.load_state_dict(models["native"].state_dict())
        answers[kind] = applied(model, kind, compression=compression)(x)
    for kind in ("band_limited", "band_limited_bits", "torch_fft"):
        assert relative(answers[kind], answers["exact"]) < 1e-12, kind
    apart = relative(answers["exact"], answers["native"])
    assert apart < 1e-12 if compression == 0.0 else apart > 1e-3


@pytest.mark.parametrize("kind", ["band_limited", "torch_fft", "exact"])
def test_series_have_the_same_kinds(kind: str, seed: int):
    x = torch.randn(2, 1, 37, dtype=torch.float64)
    model = nn.Sequential(
        nn.Conv1d(1, 4, 8, padding="same"), nn.Conv1d(4, 3, 5, stride=2, padding=2, dilation=2)
    ).double()
    want = model(x)
    assert relative(applied(model, kind)(x), want) < 1e-12


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), ((3, 4), (1, 3), (0, 3)), (2, 1, 0)])
def test_specnets_layer_keeps_the_samples_of_its_convolution(kernel, stride, padding, seed: int):
    """Small maps and beta 0, where tanh is the identity but for a third of the square of an amplitude."""
    conv = nn.Conv2d(3, 5, kernel, stride, padding).double()
    x = 1e-4 * torch.randn(2, 3, 11, 8, dtype=torch.float64)
    y = SpecNetConv2d(conv, beta=0.0)(x)
    want = F.conv2d(x, conv.weight, None, stride, padding)
    assert y.shape == want.shape
    assert relative(y - conv.bias.view(-1, 1, 1), want) < 1e-5


def test_specnet_drops_more_as_beta_rises(seed: int):
    conv, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        energies = [float(SpecNetConv2d(conv, beta)(x).square().sum()) for beta in (0.0, 0.5, 1.0, 100.0)]
    assert energies == sorted(energies, reverse=True) and energies[-1] == 0.0 < energies[-2]


def test_kronecker_layers_have_parameters_of_their_own(seed: int):
    """n^3 + s d K^2 / n in place of s d K^2, where n divides both numbers of channels: trap T26."""
    model = applied(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, stride=2, padding=1)), "phc", n=4)
    assert type(model[0]) is nn.Conv2d
    assert sum(parameter.numel() for parameter in model[1].parameters()) == 4**3 + 12 * 8 * 9 // 4 + 12
    assert model(torch.randn(1, 3, 9, 9)).shape == (1, 12, 4, 4)


def test_layers_that_fit_nothing_are_refused(seed: int):
    for kind in KINDS:
        if kind != "native":
            with pytest.raises(RangeError, match="no convolution"):
                applied(nn.Sequential(nn.Linear(3, 3)), kind)
    with pytest.raises(RangeError, match="no convolution that can be turned to 'specnet'"):
        applied(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, padding=4)), "specnet")
    with pytest.raises(RangeError, match="unknown kind of layers 'winograd'; known: native, band_limited"):
        applied(small(), "winograd")
    shared = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(RangeError, match="no convolution"):
        applied(nn.Sequential(shared, shared), "specnet")


def test_unknown_networks_are_answered_with_the_nearest():
    with pytest.raises(RangeError, match=r"did you mean 'resnet18'.*known: .*lenet.*package\.module:function"):
        load_network("resnet_18")
