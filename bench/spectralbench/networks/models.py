"""A model by name: a network of this folder, or a reader's own as package.module:function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

import spectralkernels as sk
from spectralbench.networks import load_network
from spectralbench.networks.layers import applied
from spectralkernels.convolution.geometry import conv_band, reach
from spectralkernels.errors import RangeError
from spectralkernels.nn.convolution import _BandLimited

RANDOM = (_DropoutNd, sk.nn.FrequencyDropout2d, sk.nn.SpectralPool2d)
"""Layers that draw at random while they train."""


def built(name: str, seed: int) -> nn.Module:
    """A fresh model of that name, its weights drawn from the seed.

    name: of `load_networks`, or package.module:function, a function without arguments that returns a torch.nn.Module;
    the working directory is searched too. Raises: RangeError if there is none such, or it fails.
    """
    make = load_network(name).build if ":" not in name else _own(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make()
        except (Exception, SystemExit) as error:
            raise RangeError(f"{name} failed to build its model: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise RangeError(f"{name} must return a torch.nn.Module, it returned {type(model).__name__}")
    return model


def _own(name: str) -> Callable[[], object]:
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        raise RangeError(f"{name} cannot be imported from {Path.cwd()}: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise RangeError(f"{name} must be a function without arguments, it is {type(make).__name__}")
    return make


def sides(text: str) -> tuple[int, ...]:
    """The sizes in `3x32x32`; RangeError on anything else."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) < 2:
        raise RangeError(f"an input is written as channels and sides, such as 3x32x32, got {text!r}")
    return tuple(map(int, parts))


@lru_cache(maxsize=32)
def check(name: str, batch: int, shape: tuple[int, ...]) -> int:
    """Call the model of that name, forward, on a batch of this shape; returns how many parameters it has.

    Raises: RangeError if it cannot be built, has no convolution, fails on such an input, answers anything but one
    floating-point tensor, or answers differently from call to call.
    """
    model = ready(built(name, 0), training=True)
    if not any(isinstance(module, _ConvNd) for module in model.modules()):
        raise RangeError(f"{name} has no convolution, so there is nothing to turn to another kind of layers")
    try:
        with torch.no_grad():
            x = torch.linspace(-1.0, 1.0, batch * prod(shape)).view(batch, *shape)
            y, again = model(x), model(x)
    except Exception as error:
        size = "x".join(map(str, (batch, *shape)))
        raise RangeError(f"{name} does not take an input of {size}: {type(error).__name__}: {error}") from error
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise RangeError(f"{name} must answer one floating-point tensor, it answered {type(y).__name__}")
    if not torch.allclose(y, again, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise RangeError(
            f"{name} answers differently from call to call, so that no step of it can be checked; layers of torch.nn "
            "that drop out are turned off, functions that do are its own to turn off"
        )
    return sum(parameter.numel() for parameter in model.parameters())


def ready(model: nn.Module, *, training: bool) -> nn.Module:
    """The model in the mode of a step that gives the same answer every time.

    Batches are normalised by their own statistics in training and by the stored ones otherwise; nothing is dropped out.
    Convolutions are told that they train, so that they keep no spectrum of a weight that is handed to them anew.
    """
    model.train(training)
    for module in model.modules():
        if isinstance(module, RANDOM):
            module.training = False
        if isinstance(module, _ConvNd):
            module.training = True
    return model


@lru_cache(maxsize=32)
def achieved_compression(name: str, batch: int, shape: tuple[int, ...], compression: float) -> float:
    """The fraction of coefficients that the band-limited layers of a model drop, weighted by their maps' elements."""
    model = ready(applied(built(name, 0), "band_limited", compression=compression), training=False)
    dropped, elements = 0.0, 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal dropped, elements
        assert isinstance(layer, _BandLimited)
        x, geometry = layer._geometry(inputs[0])
        del geometry["groups"]
        band = conv_band(tuple(x.shape[2:]), reach(layer.weight.shape[2:], layer.dilation), **geometry)
        dropped += band.achieved_compression * inputs[0][0].numel()
        elements += inputs[0][0].numel()

    for module in model.modules():
        if isinstance(module, _BandLimited):
            module.register_forward_pre_hook(count)
    with torch.no_grad():
        model(torch.zeros(batch, *shape))
    return dropped / elements
