"""Wrong kinds of arguments: what comes out of every public function is one of our errors, with the argument's name.

Legal calls are drawn first, then one argument at a time is replaced by everything that it should not be.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectralkernels as sk

N = sk.masks.fft_grid((6, 5), (3, 3))
X, W, B = torch.randn(2, 4, 6, 5), torch.randn(6, 4, 3, 3), torch.randn(6)
X_HAT, W_HAT = torch.fft.rfft2(X, norm="ortho"), torch.fft.rfft2(W, s=(6, 5))
MASK = sk.masks.radial(N, 0.5)
A, F = torch.randn(2, 2, 2), torch.randn(2, 3, 2, 3, 3)
SPARSE = sk.threshold_spectrum(X_HAT, 0.1, n=5)
CONVOLUTION = {
    "compression": 0.5,
    "padding": "same",
    "groups": 1,
    "grid": "tight",
    "stride": 1,
    "dilation": 1,
    "impl": "auto",
}
FREEZING = {"compression": 0.5, "padding": "same", "groups": 1, "grid": "tight"}
UNMASKED = {name: value for name, value in CONVOLUTION.items() if name not in ("compression", "stride")}


def layer(kind: Callable[..., nn.Module], *sizes: int, **fixed: Any) -> Callable[..., Any]:
    """A layer with options of its own, made and called."""
    return lambda input, **options: kind(*sizes, **fixed, **options)(input)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))


LIMITED = sk.nn.convert(network(), compression=0.5).model
LAYER = {"compression": 0.5, "grid": "tight", "impl": "auto"}
PROBED = {"model": network(), "probe": X[0], "projection": "ones"}

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "band_limited_conv2d": (sk.band_limited_conv2d, {"x": X, "weight": W, "bias": B, **CONVOLUTION}),
    "band_limited_conv1d": (sk.band_limited_conv1d, {"x": X[..., 0], "weight": W[..., 0], "bias": B, **CONVOLUTION}),
    "weight_spectrum": (sk.weight_spectrum, {"weight": W, "size": (6, 5), **FREEZING}),
    "masked_conv2d": (sk.masked_conv2d, {"x": X, "weight": W, "mask": MASK, "bias": B, "modes": None, **UNMASKED}),
    "masked_weight_spectrum": (
        sk.masked_weight_spectrum,
        {"weight": W, "modes": MASK, "size": (6, 5), "padding": "same", "groups": 1, "grid": "tight"},
    ),
    "masked_multiply": (
        sk.masked_multiply,
        {"x_hat": X_HAT, "w_hat": W_HAT, "mask": torch.ones(6, 3), "groups": 1, "impl": "auto"},
    ),
    "threshold_spectrum": (
        sk.threshold_spectrum,
        {"y_hat": X_HAT, "beta": 0.1, "activation": "tanh", "relative": False, "n": 5}
        | {"optimise": "time", "impl": "auto"},
    ),
    "sparse_multiply": (
        sk.sparse_multiply,
        {"sparse": SPARSE, "w_hat": W_HAT, "optimise": "time", "impl": "auto"},
    ),
    "spec_block": (
        sk.spec_block,
        {
            **{"x": X, "weight": W, "beta": 0.1, "activation": "tanh", "relative": False},
            **{"n": 7, "capacity": 0.5, "optimise": "time", "impl": "auto"},
        },
    ),
    "spectral_pool2d": (
        sk.spectral_pool2d,
        {
            "x": X,
            "size": (3, 2),
            "even": "average",
            "share": 0.5,
            "legacy_scale": False,
            "compat": True,
            "impl": "auto",
        },
    ),
    "energy_selection2d": (
        sk.energy_selection2d,
        {"x": X, "energy": 0.5, "mode": "code", "form": "fine", "impl": "auto"},
    ),
    "spectrum_selection": (
        sk.spectrum_selection,
        {
            "x": X,
            "weight": W,
            "compression": 0.5,
            "selection": "top",
            "padding": "same",
            "grid": "tight",
            "impl": "auto",
        },
    ),
    "crop_restore": (sk.crop_restore, {"x_hat": X_HAT, "compression": 0.5, "impl": "auto"}),
    "dc_shift": (sk.dc_shift, {"x": X_HAT, "inverse": True, "impl": "auto"}),
    "spectral_filter_conv2d": (
        sk.spectral_filter_conv2d,
        {
            "x": X,
            "coefficients": W.flatten(2),
            "bias": B,
            "kernel_size": 3,
            "form": "hermitian",
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 1,
            "impl": "auto",
        },
    ),
    "frequency_dropout2d": (sk.frequency_dropout2d, {"x": X, "share": 0.5, "impl": "auto"}),
    "diff_stride2d": (
        sk.diff_stride2d,
        {
            **{"x": X, "strides": torch.tensor([1.5, 2.0]), "smoothness": 2.0, "size": (4, 3)},
            **{"cropping": True, "legacy_scale": False, "compat": False, "impl": "auto"},
        },
    ),
    "ph_conv2d": (
        sk.ph_conv2d,
        {"x": X, "a": A, "f": F, "bias": B, "stride": 1, "padding": 1, "dilation": 1, "impl": "auto"},
    ),
    "ph_kernel": (sk.ph_kernel, {"a": A, "f": F}),
    "implementations": (sk.implementations, {"name": "spec_block", "device": "cpu"}),
    "masks.fft_grid": (sk.masks.fft_grid, {"size": (6, 5), "kernel": (3, 3), "padding": "same", "grid": "tight"}),
    "masks.rectangular": (sk.masks.rectangular, {"n": N, "compression": 0.5}),
    "masks.ring": (sk.masks.ring, {"n": N, "index": 2}),
    "masks.radial": (sk.masks.radial, {"n": N, "fraction": 0.5}),
    "masks.energy": (sk.masks.energy, {"x": X, "n": N, "keep": 0.5, "mode": "code"}),
    "masks.frequency_dropout": (
        sk.masks.frequency_dropout,
        {"n": N, "lowest": 0.3, "samples": 2, "generator": torch.Generator()},
    ),
    "masks.cell_dropout": (sk.masks.cell_dropout, {"n": N, "p": 0.3, "samples": 2, "generator": torch.Generator()}),
    "masks.dropout_floor": (sk.masks.dropout_floor, {"layer": 1, "layers": 2, "first": 0.3, "last": 0.1}),
    "masks.hermitian": (sk.masks.hermitian, {"mask": MASK, "n": N}),
    "masks.mode_list": (sk.masks.mode_list, {"mask": MASK, "n": N, "form": "auto"}),
    "masks.soft_window": (sk.masks.soft_window, {"n": N, "strides": (1.5, 2.0), "smoothness": 2.0}),
    "masks.soft_window_side": (sk.masks.soft_window_side, {"n": 8, "stride": 2.0, "smoothness": 2.0}),
    "masks.energy_index": (sk.masks.energy_index, {"x": X, "n": N, "keep": 0.5, "mode": "code"}),
    "SparseSpectrum": (
        sk.SparseSpectrum,
        {"shape": SPARSE.shape, "format": "bitmap", "values": SPARSE.values, "index": SPARSE.index},
    ),
    "SparseSpectrum.to_format": (SPARSE.to_format, {"format": "coo"}),
    "nn.BandLimitedConv2d": (layer(sk.nn.BandLimitedConv2d, 4, 6, 3), {"input": X, **LAYER}),
    "nn.BandLimitedConv1d": (layer(sk.nn.BandLimitedConv1d, 4, 6, 3), {"input": X[..., 0], **LAYER}),
    "nn.MaskedConv2d": (
        layer(sk.nn.MaskedConv2d, 4, 6, 3, padding=1),
        {"input": X, "mask": MASK, "grid": "tight", "impl": "auto"},
    ),
    "nn.SpectralConv2d": (layer(sk.nn.SpectralConv2d, 4, 6, 3), {"input": X, "form": "free"}),
    "nn.PHConv2d": (
        layer(sk.nn.PHConv2d, 4, 6, 3),
        {"input": X, "n": 2, "stride": 1, "padding": 0, "dilation": 1},
    ),
    "nn.SpecBlock": (
        layer(sk.nn.SpecBlock, 4, 6, 3),
        {"input": X, "beta": 0.1, "activation": "tanh", "relative": True, "n": 7, "capacity": 0.5}
        | {"optimise": "time", "impl": "auto"},
    ),
    "nn.SpectralPool2d": (
        layer(sk.nn.SpectralPool2d),
        {"input": X, "stride": 1.5, "even": "average", "dropout": 0.5, "legacy_scale": True, "compat": False},
    ),
    "nn.FrequencyDropout2d": (layer(sk.nn.FrequencyDropout2d), {"input": X, "lowest": 0.3}),
    "nn.DiffStride2d": (
        layer(sk.nn.DiffStride2d),
        {"input": X, "strides": (1.5, 2.0), "smoothness": 2.0, "cropping": True, "legacy_scale": True},
    ),
    "nn.BitReLU": (layer(sk.nn.BitReLU), {"input": X}),
    "nn.convert": (
        sk.nn.convert,
        {"model": network(), "compression": 0.5, "where": "*", "copy": True, "pointwise": False, "relu_bits": False},
    ),
    "nn.set_compression": (sk.nn.set_compression, {"model": LIMITED, "compression": 0.5, "where": "*"}),
    "nn.freeze_from_energy": (
        sk.nn.freeze_from_energy,
        {"model": LIMITED, "batches": [X], "energy": 0.9, "mode": "code", "where": "*"},
    ),
    "nn.report": (sk.nn.report, {"model": network(), "x": X, "repeats": 1}),
    "diagnose.frequency_response": (sk.diagnose.frequency_response, {**PROBED, "eps": 1e-12}),
    "diagnose.maximum_gain": (sk.diagnose.maximum_gain, {**PROBED, "eps": 1e-12}),
    "diagnose.label_curve": (sk.diagnose.label_curve, {"gains": [1.0] * 9, "variable": 1.0, "flat": 1.0}),
    "diagnose.GainCurve": (
        lambda model, probe, projection: sk.diagnose.GainCurve(probe, projection=projection)(model),
        PROBED,
    ),
    "diagnose.Impulse": (
        lambda **sizes: sk.diagnose.Impulse(**sizes).image(),
        {"channels": 4, "height": 6, "width": 5, "value": 1.0, "background": 0.0},
    ),
}
ANSWERS = {
    "Conversion",
    "LayerDecision",
    "LayerReport",
    "ModelReport",
    "Curve",
    "Label",
    "FrequencyResponse",
    "ModeList",
}
"""What functions return, made by nobody else."""
TORCHS = ("nn.SpectralConv2d(input)", "nn.BitReLU(input)", "nn.report(x)")
"""What is given to torch's own layers, whose errors are as good."""
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls some of these a prototype, and means to move others
    NESTED, JAGGED = (
        torch.nested.nested_tensor(parts, layout=layout)
        for parts, layout in (([X[0], X[1]], torch.strided), ([X[0, 0], X[1, 0]], torch.jagged))
    )
    CSR, QUANTIZED = torch.eye(3).to_sparse_csr(), torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
WRONG: tuple[Any, ...] = (
    *(
        "3",
        "nothing",
        b"3",
        None,
        [],
        {},
        object(),
        [1, 2, 3],
        (1.5, 2.5),
        ["a", "b"],
        float("nan"),
        float("inf"),
        -1.5,
    ),
    *(
        0,
        -7,
        10**30,
        True,
        1j,
        np.float32("nan"),
        np.array([1.0, 2.0]),
        torch.ones(2, 3),
        torch.ones(()),
        X.int(),
        X.half(),
    ),
    *(
        X.to_sparse(),
        X_HAT.to_sparse(),
        W.to_sparse(),
        B.to_sparse(),
        MASK.float().to_sparse(),
        CSR,
    ),
    *(torch.tensor(0.5).to_sparse(), X.to_mkldnn(), NESTED, torch.complex(W, W)),
    *(JAGGED, QUANTIZED, X.to(torch.float8_e4m3fn), X.abs().to(torch.uint16), X > 0),
    *(X.to("meta"), X[:, :3], W[:5], X_HAT, X_HAT.to(torch.cdouble), SPARSE, N, lambda: 3, torch.empty(0)),
)


def test_the_calls_are_legal_and_complete():
    for function, arguments in CALLS.values():
        function(**arguments)
    public = {name for name in sk.__all__ if callable(getattr(sk, name)) and name[0].islower()}
    assert public - {"explain", "autotune"} <= set(CALLS)  # explain raises what the call raises, autotune takes nothing
    for module in (sk.masks, sk.nn, sk.diagnose):
        within = {name for name in module.__all__ if callable(getattr(module, name))} - ANSWERS
        assert {f"{module.__name__.rpartition('.')[2]}.{name}" for name in within} <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_but_our_own_errors_comes_out(name: str):
    function, legal = CALLS[name]
    refused = 0
    for argument in legal:
        for wrong in WRONG:
            try:
                function(**{**legal, argument: wrong})
            except sk.SpectralKernelsError as error:
                refused += 1
                assert str(error)
            except Exception as error:
                own = callable(wrong) and "positional argument" in str(error)  # of a function that takes none
                if own or f"{name}({argument})" in TORCHS:
                    continue
                pytest.fail(f"{name}({argument}={wrong!r:.80}) raised {type(error).__name__}: {error}")
    assert refused >= len(WRONG) * len(legal) / 3


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("band_limited_conv2d", {"compression": "0.5"}, "compression must be a number, got '0.5'"),
        ("band_limited_conv2d", {"groups": 1.0}, "groups must be an integer, got 1.0"),
        ("band_limited_conv2d", {"padding": [1, "a"]}, "padding must be an integer, got 'a'"),
        ("band_limited_conv2d", {"grid": 8.5}, "grid must be an integer, got 8.5"),
        ("band_limited_conv2d", {"x": [1.0]}, "x must be a tensor, got list"),
        (
            "band_limited_conv2d",
            {"weight": W.to_sparse()},
            r"weight must be a dense tensor, got a sparse_coo one; convert it with weight.to_dense\(\)",
        ),
        ("masked_conv2d", {"mask": MASK.float().to_sparse()}, "mask must be a dense tensor, got a sparse_coo one"),
        ("dc_shift", {"x": QUANTIZED}, r"got a quantized one; convert it with x.dequantize\(\)"),
        ("spec_block", {"x": JAGGED.float()}, r"got a nested one; convert it with x.to_padded_tensor\(0.0\)"),
        ("band_limited_conv2d", {"bias": 3}, "bias must be a tensor, got 3"),
        ("band_limited_conv2d", {"impl": None}, "impl must be 'auto' or the name of an implementation, got None"),
        (
            "weight_spectrum",
            {"weight": W.int()},
            "weight must be one of float32, float64, .*, got int32",
        ),
        ("weight_spectrum", {"groups": 0}, "groups must be at least 1, got 0"),
        ("weight_spectrum", {"groups": -7}, "groups must be at least 1, got -7"),
        ("weight_spectrum", {"groups": 4}, "groups=4 must divide the 16 channels of x and the 6 output channels"),
        (
            "weight_spectrum",
            {"size": (6,)},
            r"weight must have 3 dimensions \[out_channel, in_channel / groups",
        ),
        ("weight_spectrum", {"size": 6}, "size must be 1 or 2 integers, got 6"),
        ("masked_conv2d", {"modes": MASK}, "modes must be a masks.ModeList, made by masks.mode_list"),
        ("masked_multiply", {"mask": [1]}, "mask must be a tensor, got list"),
        ("spec_block", {"beta": "a"}, "beta must be a number >= 0, got 'a'; 0 keeps every coefficient"),
        ("masks.soft_window_side", {"stride": 0}, "stride at least 1 and smoothness at least 0, got 8, 0 and 2.0"),
        ("threshold_spectrum", {"relative": "no"}, "relative must be True or False, got 'no'"),
        ("diff_stride2d", {"cropping": np.array([1, 2])}, "cropping must be True or False, got ndarray"),
        ("band_limited_conv2d", {"padding": 2**40}, "padding must be below 2147483648 zeros per side"),
        ("implementations", {"device": "mps"}, "device must be 'cpu' or 'cuda', got 'mps'"),
    ],
)
def test_messages_name_the_argument_and_what_was_given(name: str, changed: dict[str, Any], message: str):
    function, legal = CALLS[name]
    with pytest.raises(sk.SpectralKernelsError, match=message):
        function(**{**legal, **changed})


def test_numbers_of_numpy_and_torch_are_numbers():
    plain = sk.band_limited_conv2d(X, W, compression=0.5, padding=(1, 1), groups=1, grid=(9, 9))
    rate, ints = (np.float64(0.5), torch.tensor(0.5)), (np.int64, torch.tensor, np.int32)
    for compression in rate:
        for integer in ints:
            same = sk.band_limited_conv2d(
                X, W, compression=compression, padding=[integer(1)] * 2, groups=integer(1), grid=[integer(9)] * 2
            )
            torch.testing.assert_close(same, plain, rtol=0, atol=0)
            one = sk.band_limited_conv2d(X, W, compression=0.5, padding=integer(1), grid=integer(9))
            torch.testing.assert_close(one, plain, rtol=0, atol=0)
    for beta in (np.float32(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)):
        found, want = sk.threshold_spectrum(X_HAT, beta), sk.threshold_spectrum(X_HAT, 0.5)
        torch.testing.assert_close(found.to_dense(), want.to_dense(), rtol=0, atol=0)
        found, want = sk.spec_block(X, W, beta), sk.spec_block(X, W, 0.5)
        torch.testing.assert_close(found.to_dense(), want.to_dense(), rtol=0, atol=0)
