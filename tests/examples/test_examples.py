"""The examples run, and say what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import spectralkernels as sk

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_convert_resnet18(capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "convert_resnet18.py"))
    model = example["main"](["--width", "8", "--batch", "2", "--energy", "0.8"])
    told = capsys.readouterr().out
    swapped = [name for name, module in model.named_modules() if isinstance(module, sk.nn.BandLimitedConv2d)]
    assert {"conv1", "layer1.0.conv1", "layer4.1.conv2"} <= set(swapped)
    assert "its kernel has one tap" in told and "layer4.0.downsample.0" in told
    assert "80% of the energy" in told and "One training step: loss" in told
    assert max(model.get_submodule(name).compression for name in swapped) > 0.0


def test_the_network_is_torchvisions(seed: int):
    """Parameters, and sizes of maps with either stem, as torchvision's resnet18 has them."""
    network = runpy.run_path(str(EXAMPLES / "convert_resnet18.py"))["ResNet18"]
    large = network(classes=1000, cifar=False)
    assert sum(parameter.numel() for parameter in large.parameters()) == 11_689_512
    assert "layer2.0.downsample.1.running_var" in large.state_dict()
    assert network(width=8)(torch.randn(1, 3, 32, 32)).shape == (1, 10)
