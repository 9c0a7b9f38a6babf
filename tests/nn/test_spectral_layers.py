"""Layers without a twin in torch: poolings, dropout, coefficients as parameters (T42), the block of SpecNet."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectralkernels as sk
from spectralkernels.ops.spectral_filter_conv2d import kernel_basis

LAYERS = {
    "pool": lambda: sk.nn.SpectralPool2d(1.5, even="code"),
    "pool with dropout": lambda: sk.nn.SpectralPool2d(size=(4, 5), dropout=0.3),
    "dropout": lambda: sk.nn.FrequencyDropout2d(0.2),
    "learned strides": lambda: sk.nn.DiffStride2d((1.5, 2.0), smoothness=2.0, cropping=False),
    "coefficients": lambda: sk.nn.SpectralConv2d(4, 6, 3, padding=1),
    "kronecker": lambda: sk.nn.PHConv2d(4, 6, 3, n=2, padding=1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_pickles_compiles_and_moves(kind: str, seed: int):
    made, x = LAYERS[kind](), torch.randn(2, 4, 9, 8)
    made.eval()
    want = made(x)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(other(x), want)
    fresh = LAYERS[kind]()
    fresh.load_state_dict(made.state_dict())
    torch.testing.assert_close(fresh.eval()(x), want)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="aot_eager")(x), want)
    torch.testing.assert_close(made.double()(x.double()).float(), want)
    assert repr(made).startswith(type(made).__name__)
    made.train()
    x = x.double().requires_grad_()
    made(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in (x, *made.parameters()))


def test_pooling_layers_are_the_operations(seed: int):
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(sk.nn.SpectralPool2d((1.5, 2.0))(x), sk.spectral_pool2d(x, stride=(1.5, 2.0)))
    torch.testing.assert_close(
        sk.nn.SpectralPool2d(2, compat=True, legacy_scale=True, even="alias")(x),
        sk.spectral_pool2d(x, stride=2, compat=True, legacy_scale=True, even="alias"),
    )
    learned = sk.nn.DiffStride2d((1.5, 2.0), smoothness=2.0)
    torch.testing.assert_close(learned(x), sk.diff_stride2d(x, learned.strides, smoothness=2.0))


def test_dropout_draws_one_cut_off_for_a_batch_while_training(seed: int):
    x = torch.randn(1, 1, 16, 16).expand(3, 2, 16, 16)
    for made in (sk.nn.FrequencyDropout2d(0.1), sk.nn.SpectralPool2d(size=(16, 16), dropout=0.1)):
        seen = set()
        for _ in range(20):
            y = made(x)
            torch.testing.assert_close(y, y[:1, :1].expand_as(y))
            kept = torch.fft.rfft2(y[0, 0]).abs() > 1e-4
            seen.add(int(kept.sum()))
            assert kept[0, 0] and kept.sum() >= 1
        assert len(seen) > 2
        torch.testing.assert_close(made.eval()(x), x)


def test_shared_strides_gather_the_gradients_of_both_branches(seed: int):
    """A residual block pools both of its branches with one object (M61)."""
    shared = sk.nn.DiffStride2d(2.0, smoothness=2.0)
    one, other = torch.randn(1, 2, 12, 12), torch.randn(1, 2, 12, 12)
    total = torch.autograd.grad((shared(one) + shared(other)).square().sum(), shared.strides)[0]
    assert len(list(shared.parameters())) == 1
    both = (shared(one) + shared(other)).detach()
    parts = [torch.autograd.grad((2 * both * shared(x)).sum(), shared.strides)[0] for x in (one, other)]
    torch.testing.assert_close(total, parts[0] + parts[1])


# --- coefficients as parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 4), (2, 5), (1, 6)])
def test_t42_a_hermitian_kernel_has_as_many_numbers_as_taps(kernel: tuple[int, int], seed: int):
    taps = kernel[0] * kernel[1]
    for form, count in (("hermitian", taps), ("free", 2 * taps)):
        synthesis, analysis = kernel_basis(kernel, form)
        assert synthesis.shape == (count, taps) and analysis.shape == (taps, count)
        torch.testing.assert_close(analysis @ synthesis, torch.eye(taps, dtype=torch.float64))
    weight = torch.randn(kernel, dtype=torch.float64)
    synthesis, analysis = kernel_basis(kernel, "free")
    parts = (weight.flatten() @ analysis).unflatten(0, (-1, 2))
    torch.testing.assert_close(parts[:, 0] + 1j * parts[:, 1], torch.fft.fft2(weight).flatten())
    free = torch.randn(2 * taps, dtype=torch.float64)
    cells = torch.complex(*free.unflatten(0, (-1, 2)).unbind(1)).reshape(kernel)
    torch.testing.assert_close((free @ synthesis).reshape(kernel), torch.fft.ifft2(cells).real)


@pytest.mark.parametrize("form", ["hermitian", "free"])
def test_it_answers_as_the_convolution_that_it_was_made_from(form: str, seed: int):
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, dilation=(1, 2), groups=2)
    made = sk.nn.SpectralConv2d.from_conv(conv, form=form)
    x = torch.randn(2, 4, 12, 13)
    torch.testing.assert_close(made(x), conv(x))
    torch.testing.assert_close(made.weight, conv.weight)
    assert made.coefficients.shape == (6, 2, 15 * (2 if form == "free" else 1))
    made(x).sum().backward()
    with torch.no_grad():
        made.coefficients += 1.0
    assert not torch.allclose(made(x), conv(x))


@pytest.mark.parametrize(("optimiser", "alike"), [(torch.optim.Adam, True), (torch.optim.SGD, False)])
def test_t42_from_a_hermitian_start_adam_trains_both_forms_alike_and_plain_descent_does_not(
    optimiser, alike, seed: int
):
    """Mirrored coefficients have the same gradient; Adam forgets its scale, descent takes half the step in each."""
    x, target = torch.randn(4, 2, 8, 8), torch.randn(4, 2, 6, 6)
    conv = nn.Conv2d(2, 2, 3)
    kernels = []
    for form in ("hermitian", "free"):
        made = sk.nn.SpectralConv2d.from_conv(conv, form=form)
        steps = optimiser(made.parameters(), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            F.mse_loss(made(x), target).backward()
            steps.step()
        kernels.append(made.weight.detach())
    assert torch.allclose(kernels[0], kernels[1], rtol=1e-3, atol=1e-4) == alike


# --- SpecNet --------------------------------------------------------------------------------------------------------


def test_blocks_chain_as_the_operation_does(seed: int):
    net = nn.Sequential(sk.nn.SpecBlock(3, 4, 3, beta=0.2), sk.nn.SpecBlock(4, 5, 3, beta=0.1, activation="none"))
    x = torch.randn(2, 3, 8, 8)
    got = net(x)
    first = sk.spec_block(x, net[0].weight, 0.2)
    want = sk.spec_block(first, net[1].weight, 0.1, activation="none")
    assert isinstance(got, sk.SparseSpectrum)
    torch.testing.assert_close(got.to_dense(), want.to_dense())
    got.to_dense().abs().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    again = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    torch.testing.assert_close(again(x).to_dense(), got.to_dense())
    odd = nn.Sequential(sk.nn.SpecBlock(3, 4, 3, beta=0.2), sk.nn.SpecBlock(4, 5, 3, beta=0.1, n=9))
    assert odd(torch.randn(1, 3, 7, 7)).shape == (1, 5, 9, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sk.nn.SpectralPool2d(), sk.RangeError, "takes either stride or size"),
        (lambda: sk.nn.SpectralPool2d(0.5), sk.RangeError, "stride must be one number >= 1"),
        (lambda: sk.nn.SpectralPool2d(2, even="odd"), sk.RangeError, "even must be 'average', 'code'"),
        (lambda: sk.nn.SpectralPool2d(2, dropout=2.0), sk.RangeError, r"least share of the band must lie in \[0, 1\]"),
        (lambda: sk.nn.FrequencyDropout2d(-0.1), sk.RangeError, "least share of the band"),
        (lambda: sk.nn.DiffStride2d(0.5), sk.RangeError, "strides must be one number >= 1"),
        (lambda: sk.nn.DiffStride2d((2.0, float("inf"))), sk.RangeError, "strides must be one number >= 1"),
        (lambda: sk.nn.DiffStride2d(smoothness=0.0), sk.RangeError, "smoothness must be above 0"),
        (lambda: sk.nn.SpectralConv2d(1, 1, 3, form="real"), sk.RangeError, "form must be 'hermitian' or 'free'"),
        (
            lambda: sk.nn.SpectralConv2d.from_conv(nn.Conv2d(1, 1, 3, padding_mode="circular", padding=1)),
            sk.DtypeError,
            "SpectralConv2d pads zeros",
        ),
        (lambda: sk.nn.SpecBlock(1, 1, 3, beta=-1.0), sk.RangeError, "beta must be a number >= 0"),
        (lambda: sk.nn.SpecBlock(1, 1, 3, beta=1.0, activation="relu"), sk.RangeError, "unknown activation 'relu'"),
        (lambda: sk.nn.SpecBlock(1, 1, 3, beta=1.0, capacity=2.0), sk.RangeError, "capacity must be the fraction"),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_a_network_of_them_is_exported(seed: int):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        sk.nn.SpectralPool2d(1.5),
        sk.nn.DiffStride2d(cropping=False, smoothness=1.0),
        sk.nn.PHConv2d(4, 4, 3, n=2),
    )
    sk.nn.convert(model, compression=0.5)
    x = torch.randn(2, 3, 16, 16)
    for each in (model.train(), model.eval()):
        with torch.no_grad():
            exported = torch.export.export(each, (x,)).module()
            torch.testing.assert_close(exported(x), each(x))
