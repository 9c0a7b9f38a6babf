"""Convolutions whose kernels are made from other parameters: Fourier coefficients, or Kronecker factors."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectralkernels.checks import check_choice, check_tensor
from spectralkernels.convolution.plain import Padding
from spectralkernels.errors import DtypeError
from spectralkernels.ops.ph_conv2d import check_divides, ph_conv2d
from spectralkernels.ops.spectral_filter_conv2d import Form, kernel_basis


class SpectralConv2d(nn.Module):
    """A plain convolution whose parameters are the Fourier coefficients of its kernel.

    The map is that of torch.nn.Conv2d; only the basis of the parameters is another, for optimisers that scale each by
    itself, such as Adam. There is no spectrum of maps.

    form: "hermitian": the K_h K_w independent real numbers of a real kernel's spectrum, so that the capacity is that of
        Conv2d. "free": 2 K_h K_w real numbers, of which the real part of the inverse DFT is taken, as the public code
        does: redundant (T42). From a real kernel, as here, Adam trains the two alike, and plain descent does not.
    The other arguments are those of torch.nn.Conv2d; the kernel starts as Conv2d's does.
    Parameters: coefficients Real [out_channel, in_channel / groups, K_h K_w or 2 K_h K_w], and bias.
    Source: Rippel, Snoek and Adams, "Spectral Representations for Convolutional Neural Networks" (2015), section 4.2.
    """

    basis: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        form: Form = "hermitian",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        like = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        self._take(like, form)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, form: Form = "hermitian") -> Self:
        """The layer that answers as `conv` does, with parameters of its own. DtypeError unless zeros are padded."""
        if conv.padding_mode != "zeros":
            raise DtypeError(f"SpectralConv2d pads zeros, got padding_mode={conv.padding_mode!r}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(conv, form)
        return made

    def _take(self, conv: nn.Conv2d, form: Form) -> None:
        check_choice("form", form, ("hermitian", "free"))
        self.form, self.kernel_size = form, (conv.weight.shape[2], conv.weight.shape[3])
        self.options: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
        }
        synthesis, analysis = kernel_basis(self.kernel_size, form)
        weight = conv.weight.detach()
        self.register_buffer("basis", synthesis.to(weight), persistent=False)
        self.coefficients = nn.Parameter((weight.double().flatten(2) @ analysis.to(weight.device)).to(weight))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The kernel that the coefficients stand for: Real [out_channel, in_channel / groups, K_h, K_w]."""
        return (self.coefficients @ self.basis).unflatten(2, self.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        return F.conv2d(input, self.weight, self.bias, **self.options)

    def extra_repr(self) -> str:
        out_channels, per_group, _ = self.coefficients.shape
        channels = per_group * self.options["groups"]
        return f"{channels}, {out_channels}, kernel_size={self.kernel_size}, form={self.form!r}"


class PHConv2d(nn.Module):
    """A convolution whose kernel is a sum of n Kronecker products: `ph_conv2d` as a layer.

    n: divides both numbers of channels; about 1 / n of the parameters of Conv2d. stride, padding, dilation, bias: as in
    torch.nn.Conv2d. Parameters: a Real [n, n, n], f Real [n, out_channel / n, in_channel / n, K_h, K_w], and bias.
    Raises: RangeError if n does not divide the channels, naming numbers that it divides (T26).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        n: int,
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides(n, in_channels=in_channels, out_channels=out_channels)
        high, wide = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a = nn.Parameter(torch.empty(n, n, n, **options))
        self.f = nn.Parameter(torch.empty(n, out_channels // n, in_channels // n, high, wide, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw so that the variance of the kernel is that of a fresh Conv2d, 1 / (3 fan-in); a bias likewise."""
        fan_in = len(self.a) * self.f[0, 0].numel()
        bound = 1.0 / math.sqrt(fan_in)
        with torch.no_grad():
            # Of n products of independent factors: variances multiply, and add up over i.
            self.a.uniform_(-1.0, 1.0).mul_(math.sqrt(3.0 / len(self.a)))
            self.f.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return ph_conv2d(input, self.a, self.f, self.bias, **options)

    def extra_repr(self) -> str:
        n, out, channels, high, wide = self.f.shape
        sides = f"kernel_size=({high}, {wide}), stride={self.stride}, padding={self.padding}"
        return f"{n * channels}, {n * out}, {sides}, n={n}"
