"""The argument checks of `masked_multiply`."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.checks import as_integer, check_tensor
from spectralkernels.errors import DtypeError, RangeError, ShapeError

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def checked(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> Tensor | None:
    """Refuse what the operation does not take; return the mask as implementations want it.

    Returns: the mask, Bool or the real dtype of the spectra, contiguous; None stays None.
    Raises: DtypeError on a wrong dtype or device; ShapeError on sizes that do not fit; RangeError on groups < 1.
    """
    check_tensor("x_hat", x_hat)
    check_tensor("w_hat", w_hat)
    groups = as_integer("groups", groups)
    if x_hat.dtype not in _REAL:
        raise DtypeError(f"x_hat must be complex64 or complex128, got {_short(x_hat.dtype)}; pass a spectrum (rfft2)")
    if w_hat.dtype != x_hat.dtype:
        raise DtypeError(
            f"w_hat must have the dtype of x_hat, {_short(x_hat.dtype)}, got {_short(w_hat.dtype)}; convert one of them"
        )
    _same_device("w_hat", w_hat, x_hat)
    for name, spectrum, shape in (
        ("x_hat", x_hat, "[batch, in_channels, U, V]"),
        ("w_hat", w_hat, "[out_channels, in_channels / groups, U, V]"),
    ):
        if spectrum.dim() != 4:
            raise ShapeError(f"{name} must have shape {shape}, got {list(spectrum.shape)}; add or merge dimensions")
    if groups < 1:
        raise RangeError(f"groups must be at least 1, got {groups}; pass groups=1 for a dense product")
    for name, channels in (("in_channels", x_hat.shape[1]), ("out_channels", w_hat.shape[0])):
        if channels % groups:
            raise ShapeError(
                f"{name} must be a multiple of groups={groups}, got {channels}; pass groups that divide it"
            )
    if w_hat.shape[1] * groups != x_hat.shape[1]:
        raise ShapeError(
            f"w_hat must have in_channels / groups = {x_hat.shape[1] // groups} channels to match x_hat "
            f"{list(x_hat.shape)} with groups={groups}, got {w_hat.shape[1]} in {list(w_hat.shape)}; "
            "pass the weight's spectrum for these groups"
        )
    plane = list(x_hat.shape[2:])
    if list(w_hat.shape[2:]) != plane:
        raise ShapeError(
            f"w_hat must have planes of shape {plane} to match x_hat, got {list(w_hat.shape[2:])}; "
            "transform both with the same FFT size"
        )
    return None if mask is None else _checked_mask(mask, x_hat, plane)


def _checked_mask(mask: Tensor, x_hat: Tensor, plane: list[int]) -> Tensor:
    check_tensor("mask", mask)
    _same_device("mask", mask, x_hat)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise DtypeError(f"mask must be bool or floating point, got {_short(mask.dtype)}; pass mask.bool()")
    if list(mask.shape) != plane:
        raise ShapeError(
            f"mask must have shape {plane} to match the spectrum, got {list(mask.shape)}; "
            "pass a half-spectrum mask (see spectralkernels.spectra.low_pass_mask)"
        )
    return mask.contiguous() if mask.dtype == torch.bool else mask.to(_REAL[x_hat.dtype]).contiguous()


def _same_device(name: str, tensor: Tensor, x_hat: Tensor) -> None:
    if tensor.device != x_hat.device:
        raise DtypeError(
            f"{name} must be on the device of x_hat, {x_hat.device}, got {tensor.device}; "
            f"move it with {name}.to({str(x_hat.device)!r})"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
