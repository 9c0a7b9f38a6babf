"""The examples run, and say what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import spectralkernels as sk

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_convert_resnet18(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "convert_resnet18.py"))
    picture = tmp_path / "rates.png"
    model = example["main"](["--width", "8", "--batch", "2", "--energy", "0.8", "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    swapped = [name for name, module in model.named_modules() if isinstance(module, sk.nn.BandLimitedConv2d)]
    assert {"conv1", "layer1.0.conv1", "layer4.1.conv2"} <= set(swapped)
    assert "its kernel has one tap" in told and "layer4.0.downsample.0" in told
    assert "80% of the energy" in told and "One training step: loss" in told
    assert max(model.get_submodule(name).compression for name in swapped) > 0.0


def test_strides_move_and_a_price_moves_them_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "moving_strides.py"))
    picture = tmp_path / "strides.png"
    example["main"](["--steps", "12", "--width", "2", "--size", "8", "--prices", "0", "3", "--picture", str(picture)])
    ends = [
        [float(side) for side in line.partition("-> ")[2].partition(";")[0].split(",")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert ends[0] != [2.0] * 4 and min(ends[1]) > max(2.0, *ends[0])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_training_is_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "diagnose_training.py"))
    picture = tmp_path / "gains.png"
    curves = example["main"](["--epochs", "8", "--width", "2", "--rates", "0.01", "--picture", str(picture)])
    assert f"learning rate 0.01: {curves[0.01].label.value}; accuracy" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_packed_spectra_save_less_the_higher_beta(tmp_path: Path):
    example = runpy.run_path(str(EXAMPLES / "specnet_memory.py"))
    picture = tmp_path / "memory.png"
    found = example["main"](["--size", "16", "--width", "4", "--betas", "0", "0.5", "1.5", "--picture", str(picture)])
    saved, kept = zip(*found.values(), strict=True)
    assert list(saved) == sorted(saved, reverse=True) and kept[0] == 1.0 and kept[-1] < 0.2
    assert picture.read_bytes().startswith(b"\x89PNG")
