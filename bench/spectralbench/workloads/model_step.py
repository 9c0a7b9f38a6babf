"""A whole network: one training step, or one inference, with its convolutions native or in a band.

    mode=train, pass both     forward, and the gradient of <cotangent, answer> to every parameter; batches are
                              normalised by their own statistics
    mode=eval, pass forward   forward alone, with stored statistics

The operation is the network whose convolutions drop the high frequencies of map and kernel; its ideal is the network as
it was built. The answer and every gradient are held to the same network in float64, whose convolutions are the
references of their operations. The optimiser's update is not in the step: it is the same for all kinds of layers.

Parameters are inputs, named as the model names them, so that what is timed makes nothing of them beforehand: the
spectra of weights belong to the step, as in training. Dropout is off, because a step must give the same answer twice.
Source: Dziedzic et al. 2019, table 2 and figures 7 and 13; Guan et al. 2021, figure 1.
Floor: the batch and every parameter in, the answer out, and one operation for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from spectralbench.networks.layers import SpecNetConv2d, applied
from spectralbench.networks.models import achieved_compression, built, check, ready, sides
from spectralkernels.checks import check_compression, checked_beta
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Role, Scalar, Tolerance
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map

PREFIX = "parameters."
"""Of the inputs that are the model's parameters."""
OFF_THE_KINK = -(2.0**-10)
"""A fresh bias of a normalisation. SpecNet drops whole channels, whose maps are then constant, and a constant is
normalised to the bias: at 0, rounding alone would decide on which side of the ReLU all its values are."""


@dataclass(frozen=True, slots=True)
class Step:
    """Which model, in which mode. compression: of a band. beta: of SpecNet's threshold. n: of Kronecker products."""

    network: str
    training: bool
    compression: float
    beta: float
    n: int

    def __post_init__(self) -> None:
        check_compression(self.compression)
        checked_beta(self.beta)
        if self.n < 1:
            raise RangeError(f"n must be a number of Kronecker products, 1 or more, got {self.n}")

    def parameters_of(self, seed: int) -> dict[str, Tensor]:
        """Fresh parameters by name, those of normalisations that are zero moved to OFF_THE_KINK."""
        model = self._dense(seed)
        for layer in model.modules():
            if isinstance(layer, _NormBase) and isinstance(layer.bias, Tensor):
                layer.bias.data[layer.bias == 0] = OFF_THE_KINK
        return {name: value.detach() for name, value in model.named_parameters()}

    def model(self, kind: str) -> nn.Module:
        """A model with layers of that kind, ready for the step, to be called with parameters."""
        model = applied(self._dense(0), kind, compression=self.compression, beta=self.beta)
        return ready(model, training=self.training)

    def _dense(self, seed: int) -> nn.Module:
        model = built(self.network, seed)
        if self.n == 1:
            return model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return applied(model, "phc", n=self.n)


def _step(case: Case) -> Step:
    return Step(case["network"], case["mode"] == "train", case["compression"], case["beta"], case["n"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    step, shape = _step(case), (case["batch"], *sides(case["input"]))
    parameters = {f"{PREFIX}{name}": value.to(device) for name, value in step.parameters_of(case.seed).items()}
    return {"step": step, "x": feature_map("pink", shape, case.seed).to(device), **parameters}


def _prepared(kind: str, drops: bool) -> Callable[..., dict[str, Any]]:
    def prepare(step: Step, x: Tensor, **parameters: Tensor) -> dict[str, Any]:
        taken = step if drops else replace(step, compression=0.0)
        return {"net": taken.model(kind).to(x.device), "x": x, **parameters}

    return prepare


def _called(net: Any, x: Tensor, **parameters: Tensor) -> Tensor:
    return functional_call(net, {name.removeprefix(PREFIX): value for name, value in parameters.items()}, (x,))


def _double(kind: str) -> Callable[..., Tensor]:
    """The answer of a kind of layers in float64."""

    def answer(step: Step, x: Tensor, **parameters: Tensor) -> Tensor:
        net = step.model(kind).to(x.device).double()
        for layer in net.modules():
            if isinstance(layer, SpecNetConv2d):
                layer.impl = "dense"  # another way than the one that is timed
        return _called(net, x.double(), **{name: value.double() for name, value in parameters.items()})

    return answer


_EXACT, _NATIVE, _SPECNET = map(_double, ("exact", "native", "specnet"))


def _cost(case: Case) -> Cost:
    shape = sides(case["input"])
    parameters = check(case["network"], case["batch"], shape)
    if (step := _step(case)).n > 1:
        parameters = sum(value.numel() for value in step.parameters_of(0).values())
    numbers = case["batch"] * prod(shape)
    return Cost(4 * (parameters + numbers), 4 * case["batch"], parameters)


def _observe(case: Case, output: Any) -> Mapping[str, float]:
    facts = (case["network"], case["batch"], sides(case["input"]), case["compression"])
    return {
        "achieved_compression": achieved_compression(*facts),
        "parameter_bytes": 4 * sum(value.numel() for value in _step(case).parameters_of(0).values()),
    }


_ROUNDING = (
    "rounding turns the sign of a few of a million values before a ReLU, each of which is a whole term of a gradient: "
    "2e-6 seen in answers, 4e-3 in gradients of twenty convolutions, 7e-2 of a hundred and twenty, torch's own layers "
    "included; other modes cost 1e-1, and there 1"
)


@lru_cache
def _turned(network: str) -> float:
    """The relative error of a gradient by values whose sign is turned: a thousandth a convolution is allowed."""
    return 1e-3 * sum(isinstance(layer, (nn.Conv1d, nn.Conv2d)) for layer in built(network, 0).modules())


_TOLERANCE = Tolerance({"float32": 1e-2}, _ROUNDING, needs=lambda case: _turned(case["network"]))


def _subject(name: str, role: Role, source: str, kind: str, drops: bool = True, **rest: Any) -> Implementation:
    return Implementation(
        name, role, _called, source, prepare=_prepared(kind, drops), gradients=(f"{PREFIX}*",), **rest
    )


_Axes = dict[str, tuple[Scalar, ...]]

_RESNET: _Axes = {
    "network": ("resnet18",),
    "batch": (4,),
    "input": ("3x32x32",),
    "mode": ("eval",),
    "compression": (0.0, 0.5, 0.8),
    "beta": (1.0,),
    "n": (1,),
}
_LENET: _Axes = {**_RESNET, "network": ("lenet",), "input": ("1x28x28",), "compression": (0.0, 0.5)}
_BANDS = ("band_limited", "band_limited_bits", "torch_fft", "native", "torch_fft_full")
_OURS = ("band_limited", "band_limited_bits", "native")
_PACKED = ("specnet", "native")
_RATES, _BETAS = (0.0, 0.25, 0.5, 0.75, 0.85), (0.5, 1.0, 1.5)
_PACKED_NETS = ("resnet18", "alexnet", "densenet121", "vgg16")


def _steps(axes: _Axes, implementations: tuple[str, ...] | None = _BANDS) -> tuple[Block, Block]:
    """An inference and a training step of the same cases; where another mode is asked for, the one that it is."""
    return (
        Block({**axes, "mode": ("eval",)}, implementations=implementations, where=_in_mode("eval")),
        Block({**axes, "mode": ("train",)}, passes=("both",), implementations=implementations, where=_in_mode("train")),
    )


def _in_mode(mode: str) -> Callable[[Case], bool]:
    return lambda case: case["mode"] == mode


PROFILES: Mapping[str, tuple[Block, ...]] = {
    "smoke": _steps({**_LENET, "batch": (2,), "compression": (0.5,)}, None),
    "quick": _steps(_LENET, None),
    "study": (
        *_steps({**_RESNET, "compression": (0.0, 0.25, 0.5, 0.8, 0.85)}),
        *_steps({**_RESNET, "network": ("densenet121",)}),
        *_steps({**_RESNET, "network": ("resnet18_k7",), "compression": (0.5,)}),
        *_steps({**_RESNET, "network": ("fcn",), "input": ("1x270",)}),
        *_steps({**_RESNET, "compression": (0.0,), "beta": (0.5, 1.0, 1.5)}, ("specnet", "native")),
        *_steps({**_RESNET, "network": ("vgg16",), "compression": (0.0,), "beta": (1.0,)}, ("specnet", "native")),
    ),
    # What P01 and P18 show, in half an hour of a quiet machine, the cheap first: layers of torch.fft, the slowest,
    # are there at one rate of one net.
    "models": (
        *_steps({**_LENET, "batch": (16,), "compression": _RATES}, _OURS),
        _steps({**_LENET, "batch": (16,), "compression": (0.0,), "beta": _BETAS}, _PACKED)[1],
        _steps({**_RESNET, "network": ("alexnet", "densenet121"), "compression": (0.0, 0.5, 0.85)}, _OURS)[1],
        # Above that a batch of 4 on its maps of 2 x 2 is normalised by hardly a variance: 4.5e-2 seen in a gradient.
        _steps({**_RESNET, "network": ("vgg16",), "compression": (0.0, 0.5)}, _OURS)[1],
        *_steps({**_RESNET, "compression": _RATES}, _OURS),
        _steps({**_RESNET, "network": ("resnet18_k7",), "compression": (0.5,)}, ("band_limited", "native"))[1],
        _steps({**_RESNET, "network": _PACKED_NETS, "compression": (0.0,), "beta": _BETAS}, _PACKED)[1],
        *_steps({**_RESNET, "compression": (0.5,)}),
    ),
}

OPERATION = Operation(
    name="model_step",
    summary="a training step or an inference of a whole network, its convolutions native or in a band",
    version=1,
    source="Dziedzic et al., ICML 2019, table 2; Guan et al., SpecNet, 2021, figure 1",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_EXACT,
    ideal=_NATIVE,
    cost=_cost,
    fft_size=lambda case: sides(case["input"])[1:],
    tolerance=_TOLERANCE,
    implementations=(
        _subject("band_limited", "kernel", "ours: sk.nn.convert(model, compression=c)", "band_limited"),
        _subject(
            "band_limited_bits",
            "kernel",
            "ours: sk.nn.convert(model, compression=c, relu_bits=True)",
            "band_limited_bits",
        ),
        _subject("torch_fft", "baseline", "Dziedzic et al. 2019: torch.fft in every layer", "torch_fft"),
    ),
    auto=lambda **inputs: Decision("band_limited", "whatever its layers choose"),
    observe=_observe,
    rivals=(
        _subject("native", "rival", "cuDNN / oneDNN, the model as it was built", "native", engine="library"),
        _subject(
            "torch_fft_full",
            "rival",
            "torch.fft in every layer, nothing dropped",
            "torch_fft",
            drops=False,
        ),
        _subject(
            "specnet",
            "rival",
            "Guan et al. 2021: packed thresholded spectra are what is saved",
            "specnet",
            reference=_SPECNET,
            tolerance=Tolerance(
                {"float32": 5e-2}, "one coefficient near beta that is decided otherwise moves the layers after it"
            ),
        ),
    ),
    gradients=("x", f"{PREFIX}*"),
    gradient_floor=1e-3,
)
