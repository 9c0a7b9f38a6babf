"""The transfer function of a network at an operating point: the spectrum of a gradient to its input.

    g = d <p, f(x)> / dx at x0,     H_dB = 20 log10( |F(g)| + eps )   per input channel,     Maximum Gain = max H_dB

By default <p, f> is log s_k of the winning class k: the projection p_k = 1 / s_k of the softmax s, in its stable form,
because d log s_k = (1 / s_k) d s_k. A saturated softmax has no gradient, and lies at the floor of eps (T49).

Source: Stamatescu and McDonnell, "Diagnosing Convolutional Neural Networks using their Spectral Response" (2018),
section III. The impulse's values are lost in the text: here 1 in every channel of the centre pixel, 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spectralkernels.checks import (
    REAL_DTYPES,
    as_integer,
    as_number,
    check_choice,
    check_dtype,
    check_module,
    check_tensor,
)
from spectralkernels.errors import RangeError, ShapeError

Projection = Literal["log_softmax", "one_hot", "ones"] | Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Impulse:
    """A probe: one value at the centre pixel of every channel, another everywhere else.

    As a probe it is windowed: its response is multiplied by a Hann window before the transform, that of a natural
    image is not (T50).
    """

    channels: int
    height: int
    width: int
    value: float = 1.0
    background: float = 0.0

    def __post_init__(self) -> None:
        if min(as_integer(name, getattr(self, name)) for name in ("channels", "height", "width")) < 1:
            raise ShapeError(f"an impulse needs at least one channel and pixel, got {self}")
        for name in ("value", "background"):
            as_number(name, getattr(self, name))

    def image(self) -> Tensor:
        """Float32 [channel, height, width]."""
        image = torch.full((self.channels, self.height, self.width), float(self.background))
        image[:, self.height // 2, self.width // 2] = float(self.value)
        return image


@dataclass(frozen=True, slots=True)
class FrequencyResponse:
    """|F(g)| in dB for every input channel, the mean in the middle.

    decibels: Real [channel, height, width], as torch.fft.fftshift orders frequencies. gradient: g, before the window.
    projection, window ("none" or "hann"): what was used.
    """

    decibels: Tensor
    gradient: Tensor
    projection: str
    window: str

    @property
    def maximum_gain(self) -> Tensor:
        """The largest response of each channel, dB: Real [channel]. The paper averages the channels."""
        return self.decibels.amax((1, 2))


def frequency_response(
    model: nn.Module,
    probe: Tensor | Impulse,
    *,
    projection: Projection = "log_softmax",
    eps: float = 1e-12,
) -> FrequencyResponse:
    """Linearise a network at a probe and transform the gradient to its input.

    The model is called in eval(), with and without it the same afterwards; no gradient of a parameter is touched.
    probe: Real [channel, height, width] or [1, channel, height, width], on the device of the model, in the scale that
        the model is trained on; or an `Impulse`, whose gradient is windowed.
    projection: what of the output is differentiated. "log_softmax": the winning class of outputs [1, class] before the
        softmax. "one_hot": the largest output itself. "ones": their sum. A tensor of the shape of the output: <p, f>.
        A function of the output: any scalar of it.
    eps: floor of the amplitude; 1e-12 is -240 dB.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit, or if the output is not differentiable.
    """
    check_module(model)
    if not as_number("eps", eps) > 0.0:
        raise RangeError(f"eps must be above 0, got {eps}; it is the floor of the amplitude")
    image, window = _probe(probe, model)
    with _evaluating(model), torch.enable_grad():
        x = image.detach().clone().requires_grad_()
        scalar = _projected(_answer(model, x), projection)
        if scalar.grad_fn is None:
            raise RangeError("the projected output does not depend on the probe: is the model detached?")
        (gradient,) = torch.autograd.grad(scalar, x)
    gradient = gradient[0]
    height, width = gradient.shape[1:]
    if window == "hann":
        hann = [torch.hann_window(n, periodic=False, dtype=gradient.dtype, device=x.device) for n in (height, width)]
        windowed = gradient * torch.outer(hann[0], hann[1])
    else:
        windowed = gradient
    amplitude = torch.fft.fftshift(torch.fft.fft2(windowed), dim=(-2, -1)).abs()
    named = projection if isinstance(projection, str) else "given"
    return FrequencyResponse(20.0 * torch.log10(amplitude + eps), gradient, named, window)


def maximum_gain(
    model: nn.Module, probe: Tensor | Impulse, *, projection: Projection = "log_softmax", eps: float = 1e-12
) -> float:
    """The Maximum Gain of a network at a probe, dB: the largest response of each channel, averaged over channels.

    Arguments and errors: see `frequency_response`, which has the channels apart. It reads one number from the device.
    """
    response = frequency_response(model, probe, projection=projection, eps=eps)
    return float(response.maximum_gain.mean())


def _probe(probe: Tensor | Impulse, model: nn.Module) -> tuple[Tensor, str]:
    """(Real [1, channel, height, width], window)."""
    if isinstance(probe, Impulse):
        like = next(model.parameters(), None)
        image = probe.image()
        return (image if like is None else image.to(like)).unsqueeze(0), "hann"
    check_tensor("probe", probe)
    image = probe.unsqueeze(0) if probe.dim() == 3 else probe
    if image.dim() != 4 or image.shape[0] != 1 or image.numel() == 0:
        raise ShapeError(
            f"probe must be one image, [channel, height, width] or [1, channel, height, width], got {list(probe.shape)}"
        )
    check_dtype("probe", image, REAL_DTYPES)
    return image, "none"


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    """What the model makes of a probe; ShapeError, with the model's own words, where it does not take it."""
    try:
        output = model(x)
    except (RuntimeError, ValueError) as error:
        raise ShapeError(
            f"the model does not take a probe of {list(x.shape)} {x.dtype}: {type(error).__name__}: {error}"
        ) from error
    check_tensor("the output of the model", output)
    return output


def _projected(output: Tensor, projection: Projection) -> Tensor:
    if isinstance(projection, Tensor):
        check_tensor("projection", projection)
        if projection.shape != output.shape:
            raise ShapeError(
                f"projection must have the shape of the output {list(output.shape)}, got {list(projection.shape)}"
            )
        return (projection * output).sum()
    if not isinstance(projection, str) and callable(projection):
        scalar = projection(output)
        check_tensor("what the function projection returns", scalar)
        if scalar.numel() != 1:
            raise ShapeError(f"projection must make one number of the output, got shape {list(scalar.shape)}")
        return scalar.sum()
    check_choice("projection", projection, ("log_softmax", "one_hot", "ones"))
    if projection == "log_softmax":
        if output.dim() != 2:
            raise ShapeError(
                f"log_softmax needs an output [1, class], got {list(output.shape)}; pass another projection"
            )
        # The winner has the largest logarithm: no index is read.
        return torch.log_softmax(output, dim=1).amax()
    if projection == "one_hot":
        return output.amax()
    return output.sum()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval(), and as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
