"""The accuracy classes of the fused depthwise convolution: what its products multiply; sums are always float32.

fp16 reaches the accuracy of tf32 (both have 11 bits) at twice its rate, fp16x3 that of tf32x3: the kernels of maps
scale each plane and each kernel by a power of two, so that the narrow range of float16 takes part in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from spectralkernels.declare import Implementation, Tolerance
from spectralkernels.errors import RangeError
from spectralkernels.launch import interpreted, triton_unavailable
from spectralkernels.tf32 import round_to_tf32


@dataclass(frozen=True, slots=True)
class Precision:
    """operand: the dtype that products are given; mode: the `input_precision` of float32 operands.

    error: largest relative L2 error that counts as correct on float32 maps; because: where that bound comes from.
    """

    name: str
    operand: torch.dtype
    mode: str
    error: float
    because: str

    @property
    def pieces(self) -> int:
        """Into how many numbers an operand is split; 1 if it is not."""
        return {"tf32x3": 2, "fp16x3": 2, "bf16x3": 2, "bf16x6": 3}.get(self.mode, 1)

    @property
    def piece_size(self) -> int:
        """Bytes of each."""
        return 2 if self.mode in ("bf16x3", "bf16x6") else self.operand.itemsize

    @property
    def tolerance(self) -> Tolerance:
        """The bound per dtype of the maps; half types are rounded once more on the way out."""
        rounding = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3}
        return Tolerance({dtype: self.error + more for dtype, more in rounding.items()}, self.because)

    def kept(self, maps: torch.dtype) -> torch.dtype:
        """The dtype in which the spectrum of such maps is saved for backward: no wider than map or operand.

        In fp16 it has the range of float16 even where the maps are float32; fp16x3 saves 24 bits.
        """
        operand = torch.float32 if self.name == "fp16x3" else PRECISIONS[self.name].operand
        return operand if operand.itemsize < maps.itemsize else maps  # torch.compile of torch 2.9 knows no min(key=)

    def rounded(self, matrix: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A matrix as products of this class read it, contiguous on a device; dtype: default the operand's."""
        made = matrix.to(dtype or self.operand)
        if made.dtype == torch.float32 and self.mode == "tf32":
            made = round_to_tf32(made)
        return made.to(device).contiguous()

    def split(self, matrix: torch.Tensor, device: torch.device, *, wide: bool = False) -> torch.Tensor:
        """A matrix as `splitting.products` reads it: [pieces, ...], as `rounded` where the class splits nothing.

        wide: as the products of float32 operands read it that a class of halves has, too.
        """
        if self.pieces == 1:
            return self.rounded(matrix, device, torch.float32 if wide else None)
        found, rest, mode = [], matrix.float(), "tf32x3" if wide and self.mode == "fp16x3" else self.mode
        for _ in range(self.pieces):
            if mode == "tf32x3":
                found.append(round_to_tf32(rest))
            else:
                found.append(rest.to(torch.float16 if mode == "fp16x3" else torch.bfloat16))
            rest = (rest - found[-1].float()) * (2048.0 if mode == "fp16x3" else 1.0)
        return torch.stack(found).to(device).contiguous()


_ROUNDED = "and matrices rounded to {} bits, summed in fp32: {} when emulated, about three times that allowed"

PRECISIONS: Mapping[str, Precision] = {
    found.name: found
    for found in (
        Precision(
            "tf32x3",
            torch.float32,
            "tf32x3",
            3e-6,
            "three products of operands split into 11 + 11 bits, summed in fp32: 1.4e-7 to 2.2e-7 when emulated, "
            "up to ten times that allowed for the order of sums",
        ),
        Precision("tf32", torch.float32, "tf32", 3e-3, f"six operands {_ROUNDED.format(11, '4e-4 to 1e-3')}"),
        Precision("bf16", torch.bfloat16, "tf32", 2.5e-2, f"six operands {_ROUNDED.format(8, '4e-3 to 9e-3')}"),
        Precision("fp16", torch.float16, "tf32", 3e-3, f"six operands {_ROUNDED.format(11, '4e-4 to 1e-3')}"),
        Precision(
            "fp16x3",
            torch.float16,
            "fp16x3",
            3e-6,
            "three products of operands split into 11 + 11 bits, summed in fp32: 1.4e-7 to 2.2e-7 when emulated, "
            "up to ten times that allowed for the order of sums",
        ),
        Precision(
            "bf16x3",
            torch.float32,
            "bf16x3",
            3e-5,
            "three products of operands split into 8 + 8 bits, summed in fp32: 5e-6 to 1.2e-5 when emulated, "
            "about three times that allowed",
        ),
        Precision(
            "bf16x6",
            torch.float32,
            "bf16x6",
            3e-6,
            "six products of operands split into 8 + 8 + 8 bits, summed in fp32: 8e-8 to 1.4e-7 when emulated, "
            "up to ten times that allowed for the order of sums",
        ),
        Precision(
            "fp32",
            torch.float32,
            "ieee",
            3e-6,
            "fp32 products and sums: 8e-8 to 1.3e-7 when summed without error, up to ten times that allowed for the "
            "order of sums",
        ),
    )
}


UNSCALED = {name: found for name, found in PRECISIONS.items() if name != "fp16x3"}
"""The classes of kernels that do not scale what they transform, which fp16x3 needs: of series, and of resampling."""


def declared(name: str, known: Mapping[str, Precision] = PRECISIONS) -> Precision:
    """The class of that name; RangeError lists the known ones."""
    if name not in known:
        raise RangeError(f"precision must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def precision(name: str) -> Precision:
    """The same as it runs here."""
    found = declared(name)
    if not interpreted():
        return found
    # Triton's interpreter multiplies bfloat16 as integers and does not split it; float32 proves the indexing.
    if found.mode in ("bf16x3", "bf16x6"):
        return replace(found, mode="ieee")
    return replace(found, operand=torch.float32) if name == "bf16" else found


def in_every_class(
    name: str,
    call: Callable[..., Any],
    supports: Callable[..., str | None],
    source: str,
    classes: Mapping[str, Precision] = PRECISIONS,
    plan: Callable[..., Callable[..., Any]] | None = None,
) -> tuple[Implementation, ...]:
    """An implementation per class, `fused_depthwise_bf16`; the default class, tf32x3, goes by the plain name."""
    return tuple(
        Implementation(
            name if accuracy == "tf32x3" else f"{name}_{accuracy}",
            "kernel",
            partial(call, accuracy=accuracy),
            f"{source}, operands in {accuracy}",
            engine="triton",
            available=triton_unavailable,
            supports=partial(supports, accuracy=accuracy),
            plan=None if plan is None else partial(plan, accuracy=accuracy),
            tolerance=chosen.tolerance,
        )
        for accuracy, chosen in classes.items()
    )
