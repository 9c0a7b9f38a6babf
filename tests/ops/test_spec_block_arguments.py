"""Every bad argument of SpecNet's block is refused with what to do instead; what its kernels cannot serve says why."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported
from spectralkernels.ops.spec_block import OPERATION, spec_block

X = torch.ones(2, 3, 6, 5)
X_HAT = torch.ones(2, 3, 6, 4, dtype=torch.complex64)
W = torch.ones(4, 3, 3, 3)
W_HAT = torch.ones(4, 3, 6, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("x", "weight", "error", "message"),
    [
        (
            X.tolist(),
            W,
            DtypeError,
            "x must be a SparseSpectrum, a real map or its half spectrum (float32, float64, co",
        ),
        (X.half(), W, DtypeError, "complex64, complex128), got float16; convert it"),
        (X, W.tolist(), DtypeError, "weight must be a real kernel or its half spectrum (float32, float64, complex64"),
        (X, W.int(), DtypeError, "complex128), got int32; convert it"),
        (X, W.double(), DtypeError, "weight must have the precision of x (float32), got float64; convert one of them"),
        (X_HAT, W.double(), DtypeError, "weight must have the precision of x (complex64), got float64; convert"),
        (X, W.to("meta"), DtypeError, "weight must be on the device of x (cpu), got meta; move one of them"),
        (X[0], W, ShapeError, "x must have shape [batch, channel, height, width], got [3, 6, 5]; add the axes"),
        (X, W[0], ShapeError, "weight must have shape [out_channel, channel, ...] with two more axes, a kernel's or a"),
        (X[:, :, :0], W, ShapeError, "planes must not be empty, got x [2, 3, 0, 5] and weight [4, 3, 3, 3]"),
        (X, W[..., :0], ShapeError, "planes must not be empty, got x [2, 3, 6, 5] and weight [4, 3, 3, 0]"),
        (X, W[:, :2], ShapeError, "weight must have the 3 channels of x in its second axis, got shape [4, 2, 3, 3]; a"),
        (
            X_HAT,
            W_HAT[..., :3],
            ShapeError,
            "weight must be a spectrum of planes [6, 4] to match x, got shape [4, 3, 6",
        ),
        (
            X,
            W_HAT[:, :, :5],
            ShapeError,
            "weight must be a spectrum on a grid of at least the map's [6, 5], got [5, 6]",
        ),
        (
            X_HAT,
            torch.ones(4, 3, 7, 3),
            ShapeError,
            "weight must be no larger than the grid [6, 6] of x, got shape [4,",
        ),
    ],
)
def test_bad_arguments(x: Any, weight: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        spec_block(x, weight, 1.0)


@pytest.mark.parametrize(
    ("x", "keywords", "error", "message"),
    [
        (X, {"n": 8}, ShapeError, "n must be width + kernel_width - 1 = 7 for a real map, got 8; leave it out"),
        (
            X_HAT,
            {"n": 8},
            ShapeError,
            "n must be a signal length with the 4 half-spectrum columns of x (6 or 7), got 8",
        ),
        (X, {"beta": -1.0}, RangeError, "beta must be a number >= 0, got -1.0; 0 keeps every coefficient"),
        (X, {"beta": float("nan")}, RangeError, "beta must be a number >= 0, got nan"),
        (X, {"beta": "1"}, RangeError, "beta must be a number >= 0, got '1'"),
        (X, {"activation": "relu"}, RangeError, "unknown activation 'relu'; known: tanh, none"),
        (
            X,
            {"capacity": 0.0},
            RangeError,
            "capacity must be the fraction of coefficients to reserve room for, in (0, 1",
        ),
        (X, {"capacity": 50}, RangeError, "in (0, 1], got 50; None reserves what is kept"),
        (X, {"capacity": True}, DtypeError, "capacity must be a number, got True"),
        (X, {"impl": "fast"}, RangeError, "spec_block has no implementation 'fast'; known: dense, bitmap, triton"),
        (X, {"impl": "triton"}, Unsupported, "spec_block with impl='triton': Triton kernels need a CUDA device"),
    ],
)
def test_bad_keywords(x: Tensor, keywords: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        spec_block(x, W, **{"beta": 1.0, **keywords})


def test_what_cannot_be_served_says_why():
    triton, bitmap = (OPERATION.implementation(name).supports for name in ("triton", "bitmap"))
    assert triton(weight=W.double(), shape=(2, 3, 6, 4), beta=0.5) == (
        "the kernels take float32 or complex64, got torch.float64; use impl='bitmap'"
    )
    reason = triton(weight=W, shape=(1, 1, 2**15, 2**15), beta=0.5)
    assert reason is not None and "fewer than 2^30 coefficients, got [32768, 32768]; use impl='bitmap'" in reason
    for supports in (triton, bitmap):
        reason = supports(weight=W, shape=(2**20, 3, 2**5, 2**5), beta=0.5)
        assert reason == "packed maps take at most 2147482624 coefficients, got 4294967296; split the batch"
