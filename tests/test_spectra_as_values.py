"""Frozen weights and sparse spectra are values: they move, compare, print, are saved, and remember their geometry."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectralkernels as sk

GEOMETRY = {"compression": 0.4, "padding": 2, "groups": 2, "grid": 15}


def frozen(weight: Tensor) -> sk.WeightSpectrum:
    return sk.weight_spectrum(weight, (9, 8), **GEOMETRY)


def listed(weight: Tensor) -> sk.WeightSpectrum:
    return sk.masked_weight_spectrum(
        weight, sk.masks.radial((15, 15), 0.4), (9, 8), **{k: v for k, v in GEOMETRY.items() if k != "compression"}
    )


def test_a_call_need_not_repeat_the_geometry(seed: int):
    x, weight, bias = torch.randn(2, 4, 9, 8), torch.randn(6, 2, 4, 3), torch.randn(6)
    want = sk.band_limited_conv2d(x, weight, bias, **GEOMETRY)
    torch.testing.assert_close(sk.band_limited_conv2d(x, frozen(weight), bias), want)
    for name, value in GEOMETRY.items():
        torch.testing.assert_close(sk.band_limited_conv2d(x, frozen(weight), bias, **{name: value}), want)
    for name, value in {"compression": 0.0, "padding": 1, "groups": 1, "grid": "tight"}.items():
        with pytest.raises(sk.ShapeError, match="this WeightSpectrum was made for") as refused:
            sk.band_limited_conv2d(x, frozen(weight), bias, **{name: value})
        assert "Band(" not in str(refused.value)
    with pytest.raises(sk.ShapeError, match=r"made for groups=2, the call needs groups=1; leave the geometry out"):
        sk.band_limited_conv2d(x, frozen(weight), bias, groups=1)
    with pytest.raises(sk.ShapeError, match=r"maps of \(9, 8\), got \(8, 9\)"):
        sk.band_limited_conv2d(x.mT, frozen(weight), bias)
    mask = sk.masks.radial((15, 15), 0.4)
    options = {name: value for name, value in GEOMETRY.items() if name != "compression"}
    want = sk.masked_conv2d(x, weight, mask, bias, **options)
    torch.testing.assert_close(sk.masked_conv2d(x, listed(weight), mask, bias), want)
    series = sk.weight_spectrum(weight[..., 0], (9,), compression=0.5, groups=2)
    want = sk.band_limited_conv1d(x[..., 0], weight[..., 0], compression=0.5, groups=2)
    torch.testing.assert_close(sk.band_limited_conv1d(x[..., 0], series), want)


@pytest.mark.parametrize("make", [frozen, listed])
def test_a_frozen_weight_compares_moves_and_prints(make: Any, seed: int):
    weight = torch.randn(6, 2, 4, 3)
    one = make(weight)
    assert one == make(weight)
    assert one != make(weight + 1)
    assert one != make(torch.cat([weight, weight]))
    assert one != 3
    assert one == copy.deepcopy(one)
    assert one.to(torch.float64).modes.dtype == torch.float64
    assert one.to(torch.float64) != one
    assert one.to(torch.float64).to(torch.float32) == one
    assert one.to("meta").modes.device.type == "meta"
    with pytest.raises(sk.DtypeError, match="held in float32 or float64"):
        one.to(torch.bfloat16)
    text = repr(one)
    assert "\n" not in text
    assert len(text) < 200
    assert "weight=[6, 2, 4, 3], size=(9, 8), n=(15, 15)" in text


def sparse(format: str) -> sk.SparseSpectrum:
    y = torch.fft.rfft2(torch.randn(2, 3, 6, 5), norm="ortho")
    return sk.threshold_spectrum(y, 0.5, n=5, impl=format)


@pytest.mark.parametrize("format", ["dense", "coo", "csr", "index", "bitmap"])
def test_a_sparse_spectrum_moves_and_is_loaded(format: str, tmp_path: Path, seed: int):
    one = sparse(format)
    wide = one.to(torch.complex128)
    assert wide.dtype == torch.complex128
    torch.testing.assert_close(wide.to_dense(), one.to_dense().to(torch.complex128))
    assert {part.device.type for part in one.to("meta").index} <= {"meta"}
    with pytest.raises(sk.DtypeError, match="are complex"):
        one.to(torch.int32)
    torch.save({"one": one}, tmp_path / "file")
    loaded = torch.load(tmp_path / "file", weights_only=True)["one"]
    assert (loaded.shape, loaded.format, loaded.n) == (one.shape, one.format, one.n)
    torch.testing.assert_close(loaded.to_dense(), one.to_dense(), rtol=0, atol=0)


class Frozen(nn.Module):
    """A layer of a user's own, as the documentation of WeightSpectrum has it."""

    def __init__(self, spectrum: sk.WeightSpectrum) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.register_buffer("modes", spectrum.modes)

    def forward(self, x: Tensor) -> Tensor:
        return sk.band_limited_conv2d(x, replace(self.spectrum, modes=self.modes))

    def get_extra_state(self) -> sk.WeightSpectrum:
        return self.spectrum

    def set_extra_state(self, state: sk.WeightSpectrum) -> None:
        self.spectrum = state


@pytest.mark.parametrize("make", [frozen, listed])
def test_a_frozen_weight_is_saved_and_loaded(make: Any, tmp_path: Path, seed: int):
    one = make(torch.randn(6, 2, 4, 3))
    assert pickle.loads(pickle.dumps(one)) == one
    torch.save(one, tmp_path / "file")
    assert torch.load(tmp_path / "file", weights_only=True) == one


def test_a_module_holds_a_frozen_weight(tmp_path: Path, seed: int):
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 2, 4, 3)
    module, other = Frozen(frozen(weight)), Frozen(frozen(torch.zeros_like(weight)))
    torch.save(module.state_dict(), tmp_path / "file")
    other.load_state_dict(torch.load(tmp_path / "file", weights_only=True))
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    want = sk.band_limited_conv2d(x.double(), weight.double(), **GEOMETRY)
    torch.testing.assert_close(module.double()(x.double()), want, rtol=1e-5, atol=1e-5)
