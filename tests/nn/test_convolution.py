"""Twins of torch's convolutions: the same weights and answers, and a kept spectrum that never outlives its weight."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectralkernels as sk

SHAPES = {1: (2, 4, 13), 2: (2, 4, 9, 6)}
OPERATIONS = {1: sk.band_limited_conv1d, 2: sk.band_limited_conv2d}
LAYERS = {1: (nn.Conv1d, sk.nn.BandLimitedConv1d), 2: (nn.Conv2d, sk.nn.BandLimitedConv2d)}


def ones(n: tuple[int, int]) -> Tensor:
    return torch.ones(n[0], n[1] // 2 + 1)


def layer(**changes: object) -> sk.nn.BandLimitedConv2d:
    return sk.nn.BandLimitedConv2d(4, 6, 3, padding=1, **{"compression": 0.5, **changes})


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_without_compression_it_is_the_torch_layer(axes: int, padding: object, mode: str, seed: int):
    plain, spectral = LAYERS[axes]
    x = torch.randn(SHAPES[axes], dtype=torch.float64)
    for kernel, groups, bias in ((3, 1, True), (4, 2, False), (1, 4, True)):
        built = [
            kind(4, 8, kernel, padding=padding, groups=groups, bias=bias, padding_mode=mode) for kind in LAYERS[axes]
        ]
        twin, like = (made.double() for made in reversed(built))
        twin.load_state_dict(like.state_dict())
        torch.testing.assert_close(twin(x), like(x))
        assert isinstance(twin, plain) and type(twin) is spectral


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (3, 2), (1, 2)])
def test_strides_and_dilations_are_torchs_and_keep_no_spectrum(axes: int, stride: int, dilation: int, seed: int):
    x = torch.randn(SHAPES[axes], dtype=torch.float64)
    options = {"stride": stride, "padding": 2, "dilation": dilation, "groups": 2, "dtype": torch.float64}
    for mode in ("zeros", "circular", "reflect", "replicate"):
        like, twin = (kind(4, 8, 3, padding_mode=mode, **options) for kind in LAYERS[axes])
        twin.load_state_dict(like.state_dict())
        torch.testing.assert_close(twin(x), like(x))
    twin, operation = LAYERS[axes][1](4, 8, 3, compression=0.5, **options), OPERATIONS[axes]
    twin.eval().requires_grad_(False)
    arguments = {"padding": 2, "dilation": dilation, "groups": 2, "compression": 0.5, "impl": "torch_fft"}
    want = operation(x, twin.weight, twin.bias, stride=stride, **arguments)
    torch.testing.assert_close(twin(x), want)
    assert not holds(twin)


def test_a_causal_layer_of_series_keeps_its_spectrum_and_hides_the_future(seed: int):
    x = torch.randn(2, 4, 13, dtype=torch.float64)
    for dilation, stride in ((1, 1), (2, 1), (1, 3)):
        made = sk.nn.BandLimitedConv1d(
            4, 6, 3, causal=True, dilation=dilation, stride=stride, groups=2, dtype=torch.float64
        )
        padded = F.pad(x, (2 * dilation, 0))
        want = F.conv1d(padded, made.weight, made.bias, stride, 0, dilation, 2)
        torch.testing.assert_close(made(x), want)
        torch.testing.assert_close(copy.deepcopy(made).eval().requires_grad_(False)(x), want)
        assert "causal=True" in repr(made)
    made.stride, made.compression = (1,), 0.5
    kept = made.eval().requires_grad_(False)
    torch.testing.assert_close(
        kept(x), sk.band_limited_conv1d(x, made.weight, made.bias, padding="causal", groups=2, compression=0.5)
    )
    assert holds(made)
    for wrong in ({"padding": 1}, {"padding_mode": "circular"}):
        with pytest.raises(sk.RangeError, match="causal=True pads by itself"):
            sk.nn.BandLimitedConv1d(4, 6, 3, causal=True, **wrong)


def test_arguments_by_position_are_those_of_torch(seed: int):
    torch.manual_seed(seed)
    like = nn.Conv2d(4, 6, (3, 5), 1, (1, 2), 1, 2, False)
    torch.manual_seed(seed)
    twin = sk.nn.BandLimitedConv2d(4, 6, (3, 5), 1, (1, 2), 1, 2, False, compression=0.3)
    assert torch.equal(twin.weight, like.weight)
    assert list(twin.state_dict()) == list(like.state_dict()) == ["weight"]
    assert "compression=0.3" in repr(twin)


@pytest.mark.parametrize("axes", [1, 2])
def test_with_compression_it_is_the_operation(axes: int, seed: int):
    operation = {1: sk.band_limited_conv1d, 2: sk.band_limited_conv2d}[axes]
    twin = LAYERS[axes][1](4, 6, 3, padding="same", groups=2, compression=0.5, grid="fast", dtype=torch.float64)
    x = torch.randn(SHAPES[axes], dtype=torch.float64, requires_grad=True)
    want = operation(x, twin.weight, twin.bias, compression=0.5, groups=2, grid="fast")
    torch.testing.assert_close(twin(x), want)
    inputs = (x, twin.weight, twin.bias)
    for got, wanted in zip(
        torch.autograd.grad(twin(x).sin().sum(), inputs), torch.autograd.grad(want.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_masked_layer_takes_a_mask_or_a_rule(seed: int):
    x = torch.randn(2, 4, 9, 6)
    like = nn.Conv2d(4, 6, 3, padding=1)
    whole = sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=ones)
    whole.load_state_dict(like.state_dict())
    torch.testing.assert_close(whole(x), like(x))
    rule = partial(sk.masks.radial, fraction=0.4)
    n = sk.masks.fft_grid((9, 6), (3, 3), padding=1)
    fixed = sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=rule(n))
    ruled = sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=rule)
    for made in (fixed, ruled):
        made.load_state_dict(like.state_dict())
        torch.testing.assert_close(made(x), sk.masked_conv2d(x, like.weight, rule(n), like.bias, padding=1))
    ruled(torch.randn(1, 4, 5, 5))  # another grid asks the rule again
    with pytest.raises(sk.ShapeError, match="half spectrum of the grid"):
        fixed(torch.randn(1, 4, 5, 5))


def test_a_dilated_masked_layer_is_torchs_under_a_mask_of_ones(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spectralkernels.nn.convolution.has_use", lambda call: True)
    x, options = torch.randn(2, 4, 9, 8, dtype=torch.float64), {"padding": 2, "dilation": (2, 3), "groups": 2}
    like = nn.Conv2d(4, 6, 3, dtype=torch.float64, **options)
    whole = sk.nn.MaskedConv2d(4, 6, 3, mask=ones, dtype=torch.float64, **options)
    half = sk.nn.MaskedConv2d(4, 6, 3, mask=partial(sk.masks.radial, fraction=0.4), dtype=torch.float64, **options)
    for made in (whole, half):
        made.load_state_dict(like.state_dict())
    torch.testing.assert_close(whole(x), like(x))
    want = half(x)
    kept = copy.deepcopy(half).eval().requires_grad_(False)
    torch.testing.assert_close(kept(x), want)
    assert holds(kept)


@pytest.mark.parametrize("training", [True, False])
def test_a_strided_masked_layer_gives_every_sth_sample(training: bool, seed: int):
    """Of ones it is torch's; of a disc every s-th sample of the layer without a stride, with a kept spectrum or not."""
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=training)
    options = {"padding": (1, 2), "groups": 2, "dtype": torch.float64}
    for stride, mask in ((2, torch.ones), ((3, 2), torch.ones), ((1, 3), lambda n: sk.masks.radial(n, 0.5))):
        made = sk.nn.MaskedConv2d(
            4, 6, 3, stride=stride, mask=(lambda n: torch.ones(n[0], n[1] // 2 + 1)) if mask is torch.ones else mask,
            **options,
        ).train(training)  # fmt: skip
        step = stride if isinstance(stride, tuple) else (stride, stride)
        whole = sk.nn.MaskedConv2d(4, 6, 3, mask=made.rule, **options).train(training)
        whole.load_state_dict(made.state_dict())
        with torch.set_grad_enabled(training):
            y, want = made(x), whole(x)[..., :: step[0], :: step[1]]
            torch.testing.assert_close(y, want)
            assert y.is_contiguous()
            if mask is torch.ones:
                torch.testing.assert_close(y, F.conv2d(x, made.weight, made.bias, step, (1, 2), 1, 2))
        if training:
            found, wanted = (torch.autograd.grad(each.sin().sum(), x)[0] for each in (y, want))
            torch.testing.assert_close(found, wanted)


def test_a_masked_layer_follows_its_mask(seed: int):
    x = torch.randn(1, 2, 6, 6)
    n = sk.masks.fft_grid((6, 6), (3, 3), padding=1)
    made = sk.nn.MaskedConv2d(2, 2, 3, padding=1, mask=sk.masks.radial(n, 0.5)).eval()
    with torch.no_grad():
        before = made(x)
        made.mask.zero_()
        made.mask[0, 0] = True
        after = made(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, sk.masked_conv2d(x, made.weight, made.mask, made.bias, padding=1).detach())


# --- the kept spectrum ----------------------------------------------------------------------------------------------


def holds(made: nn.Module) -> bool:
    return made._kept is not None and made._kept[2] is not None


def fresh(made: nn.Module, x: Tensor) -> Tensor:
    return sk.band_limited_conv2d(x, made.weight.detach(), made.bias.detach(), padding=1, compression=0.5)


@pytest.mark.parametrize("kind", ["band", "mask"])
def test_the_spectrum_is_kept_in_eval_without_gradients_alone(kind: str, seed: int):
    # Both large enough that the products, which have a use for the spectrum, are estimated to be the faster.
    made, shape = (
        (layer(), (2, 4, 9, 6))
        if kind == "band"
        else (sk.nn.MaskedConv2d(16, 16, 3, padding=1, mask=partial(sk.masks.radial, fraction=0.5)), (2, 16, 24, 20))
    )
    x = torch.randn(shape)
    with torch.no_grad():
        want = made(x)
    assert not holds(made)  # training
    made.eval()
    made(x)
    assert not holds(made)  # the weight has a gradient
    with torch.no_grad():
        torch.testing.assert_close(made(x), want)
        kept = made._kept
        assert holds(made)
        torch.testing.assert_close(made(x), want)
        assert made._kept is kept  # no second transform
    made.requires_grad_(False)
    through = torch.randn(shape, requires_grad=True)
    made(through).sum().backward()
    assert holds(made) and through.grad is not None
    assert not holds(made.train())


def test_without_compression_nothing_is_kept_where_the_direct_sum_is_faster(seed: int):
    made = layer(compression=0.0).eval()
    with torch.no_grad():
        made(torch.randn(2, 4, 9, 6))
    assert not holds(made)


def rewritten(made: nn.Module, how: str) -> None:
    """Change the weight in one of the ways that people use."""
    other = torch.randn_like(made.weight)
    if how == "in place":
        with torch.no_grad():
            made.weight.mul_(2.0)
    elif how == "optimiser":
        made.weight.grad = other
        torch.optim.SGD(made.parameters(), lr=0.5).step()
    elif how == "fused optimiser":
        made.weight.grad = other
        torch.optim.SGD(made.parameters(), lr=0.5, fused=True).step()
    elif how == "load_state_dict":
        made.load_state_dict({**made.state_dict(), "weight": other})
    elif how == "assign":
        made.load_state_dict({**made.state_dict(), "weight": other}, assign=True)
    elif how == "new parameter":
        made.weight = nn.Parameter(other)
    elif how == "weight.data = ":
        made.weight.data = other


@pytest.mark.parametrize(
    "how", ["in place", "optimiser", "fused optimiser", "load_state_dict", "assign", "new parameter", "weight.data = "]
)
def test_a_changed_weight_drops_the_spectrum(how: str, seed: int):
    made, x = layer().eval(), torch.randn(2, 4, 9, 6)
    with torch.no_grad():
        before = made(x)
    rewritten(made, how)
    with torch.no_grad():
        after = made(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fresh(made, x))


def test_a_weight_where_another_lay_is_not_taken_for_it(seed: int):
    """A parametrised weight is new for every call, and may come to lie where the last one did; as may a rounded one."""
    x = torch.randn(4, 16, 16, 16)
    for _ in range(8):
        made = sk.nn.BandLimitedConv2d(16, 16, 3, padding=1, compression=0.5).eval()
        with torch.no_grad():
            made(x)
            torch.testing.assert_close(made.bfloat16().float()(x), fresh(made, x))
        nn.utils.parametrizations.weight_norm(made).eval()
        with torch.no_grad():
            made(x)
            made.parametrizations.weight.original0.mul_(3.0)
            torch.testing.assert_close(made(x), fresh(made, x))


def test_a_mask_where_another_lay_is_not_taken_for_it(seed: int):
    x, n = torch.randn(1, 2, 9, 8), sk.masks.fft_grid((9, 8), (3, 3), padding=1)
    for _ in range(16):
        made = sk.nn.MaskedConv2d(2, 2, 3, padding=1, mask=torch.rand(n[0], n[1] // 2 + 1))
        made(x)
        made.mask = None
        for _ in range(3):
            made.mask = torch.rand(n[0], n[1] // 2 + 1)
        want = sk.masked_conv2d(x, made.weight, made.mask, made.bias, padding=1)
        torch.testing.assert_close(made(x), want)
    made.mask, made.rule = None, partial(sk.masks.radial, fraction=0.5)
    made(x)
    made.rule = partial(sk.masks.radial, fraction=0.2)
    want = sk.masked_conv2d(x, made.weight, sk.masks.radial(n, 0.2), made.bias, padding=1)
    torch.testing.assert_close(made(x), want)


def test_a_parametrised_weight_under_a_mask_has_the_dilation_of_its_layer(seed: int):
    x, every = torch.randn(1, 2, 9, 8), lambda n: torch.ones(n[0], n[1] // 2 + 1)
    made = sk.nn.MaskedConv2d(2, 2, 3, padding=2, dilation=2, mask=every)
    nn.utils.parametrizations.weight_norm(made)
    torch.testing.assert_close(made(x), nn.functional.conv2d(x, made.weight, made.bias, padding=2, dilation=2))


def test_data_copy_goes_unseen_until_eval_is_called_again(seed: int):
    """torch does not count what is written through `.data`: documented in `nn.frozen`, and the way out works."""
    made, x = layer().eval(), torch.randn(2, 4, 9, 6)
    with torch.no_grad():
        before = made(x)
        made.weight.data.copy_(torch.randn_like(made.weight))
        assert torch.equal(made(x), before)
        made.eval()
        torch.testing.assert_close(made(x), fresh(made, x))


def test_other_sizes_rates_and_types_have_spectra_of_their_own(seed: int):
    made = layer().eval().requires_grad_(False)
    for shape in ((2, 4, 9, 6), (1, 4, 5, 8), (2, 4, 9, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(made(x), fresh(made, x))
    made.compression = 0.8
    x = torch.randn(2, 4, 9, 6)
    want = sk.band_limited_conv2d(x, made.weight, made.bias, padding=1, compression=0.8)
    torch.testing.assert_close(made(x), want)
    made.double()
    torch.testing.assert_close(made(x.double()).float(), want)
    with pytest.raises(sk.DtypeError, match="weight must have the dtype of x"):
        made(x.half())


def test_an_inference_weight_is_transformed_every_time(seed: int):
    with torch.inference_mode():
        made, x = layer().eval(), torch.randn(2, 4, 9, 6)
        torch.testing.assert_close(made(x), fresh(made, x))
        assert not holds(made)


def test_copies_pickles_and_saved_files_leave_the_spectrum_behind(seed: int):
    made, x = layer().eval().requires_grad_(False), torch.randn(2, 4, 9, 6)
    want = made(x)
    saved = io.BytesIO()
    torch.save(made, saved)
    saved.seek(0)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(saved, weights_only=False)):
        assert not holds(other) and other.compression == 0.5
        torch.testing.assert_close(other(x), want)
        with torch.no_grad():
            other.weight.zero_()
        torch.testing.assert_close(made(x), want)
    assert holds(made)


def test_threads_share_a_layer(seed: int):
    """As DataParallel calls replicas: one layer, maps of several sizes at once."""
    made = layer().eval().requires_grad_(False)
    inputs = [torch.randn(2, 4, 5 + i, 6) for i in range(4)]
    wanted, got = [fresh(made, x) for x in inputs], {}

    def work(i: int) -> None:
        got[i] = [made(inputs[i]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for i, want in enumerate(wanted):
        for each in got[i]:
            torch.testing.assert_close(each, want)


# --- surroundings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["band", "mask"])
def test_it_compiles_whole(kind: str, training: bool, seed: int):
    n = sk.masks.fft_grid((9, 6), (3, 3), padding=1)
    made = layer() if kind == "band" else sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=sk.masks.radial(n, 0.5))
    model = nn.Sequential(made, nn.ReLU(), nn.Conv2d(6, 2, 3)).train(training)
    x = torch.randn(2, 4, 9, 6)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_autocast_and_channels_last(seed: int):
    made, x = layer().eval(), torch.randn(2, 4, 9, 6)
    with torch.no_grad():
        want = made(x)
        torch.testing.assert_close(made(x.contiguous(memory_format=torch.channels_last)), want)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lowered = made(x)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layer(compression=1.0), sk.RangeError, r"compression must lie in \[0, 1\)"),
        (lambda: layer(padding_mode="mirror"), ValueError, "padding_mode must be one of"),
        (lambda: layer()(torch.randn(9, 6)), sk.ShapeError, "x must have 4 dimensions"),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()
