"""The accuracy classes of the truncated-DFT kernels, as named choices.

A class says what a number is rounded to before a tensor core multiplies it, and so what a spectrum is stored as.
Accumulators are float32 in every class. The bounds are relative L2 errors of a whole convolution with unit-variance
inputs, emulated in float64 with each operand rounded as the class rounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spectralkernels.declare import Tolerance


@dataclass(frozen=True, slots=True)
class ChainPrecision:
    """One accuracy class.

    storage: dtype of spectra and DFT matrices. dot: the `input_precision` of `tl.dot` on float32 operands.
    error: largest relative L2 error of a forward pass in float32. because: where that bound comes from.
    """

    name: str
    storage: torch.dtype
    dot: str
    error: float
    because: str

    @property
    def tolerance(self) -> Tolerance:
        """The class's bound; half-precision maps add one rounding on the way out."""
        rounding = {"float32": 0.0, "float16": 5e-4, "bfloat16": 4e-3}
        return Tolerance({dtype: self.error + extra for dtype, extra in rounding.items()}, self.because)


_FLOAT32 = "sums of float32 products, growing like the root of their number times 2^-24: 2e-7 to 5e-7 seen"

PRECISIONS = {
    precision.name: precision
    for precision in (
        ChainPrecision("fp32", torch.float32, "ieee", 3e-6, _FLOAT32),
        ChainPrecision("tf32x3", torch.float32, "tf32x3", 3e-6, f"three tf32 products keep 21 bits; {_FLOAT32}"),
        ChainPrecision("tf32", torch.float32, "tf32", 2e-3, "five operands rounded to 11 bits"),
        ChainPrecision("fp16", torch.float16, "ieee", 2e-3, "five operands rounded to 11 bits"),
        ChainPrecision("bf16", torch.bfloat16, "ieee", 1.6e-2, "five operands rounded to 8 bits"),
        ChainPrecision("bf16x3", torch.float32, "bf16x3", 3e-5, "three bf16 products keep 16 bits"),
        ChainPrecision("bf16x6", torch.float32, "bf16x6", 3e-6, f"six bf16 products keep 24 bits; {_FLOAT32}"),
    )
}
