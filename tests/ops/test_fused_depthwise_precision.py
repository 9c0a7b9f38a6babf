"""The accuracy classes of the fused depthwise convolution, emulated: each stated bound holds and is not loose."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from depthwise_geometry import geometry_of
from guarded_interpreter import relative_error
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.fused.precision import PRECISIONS, Precision, precision
from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry, Pair, operators, tiles
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.tf32 import round_to_tf32

CPU = torch.device("cpu")
ZERO = torch.zeros(())


def pieces(values: Tensor, chosen: Precision) -> list[Tensor]:
    """Float32 values as the numbers that a class multiplies; their sum is what is left of them."""
    found: list[Tensor] = []
    for number in range(chosen.pieces):
        if chosen.mode == "fp16x3":
            # NumPy's float16; the rest is held times 2^11.
            held = (values.numpy() * np.float32(2048.0) ** number).astype(np.float16)
            piece = torch.from_numpy(held.astype(np.float32) / np.float32(2048.0) ** number)
        elif chosen.operand != torch.float32:
            piece = values.to(chosen.operand).float()
        elif chosen.mode.startswith("bf16"):
            piece = values.bfloat16().float()
        else:
            piece = round_to_tf32(values) if chosen.mode != "ieee" else values
        found.append(piece)
        values = values - piece
    return [piece.double() for piece in found]


def product(a: Tensor, b: Tensor, chosen: Precision) -> Tensor:
    """A matrix product on operands rounded as the class rounds them, summed without error, rounded to float32."""
    # Of the products of pieces, those below the last piece are left out.
    kept = [
        first @ second
        for i, first in enumerate(pieces(a.float(), chosen))
        for j, second in enumerate(pieces(b.float(), chosen))
        if i + j < chosen.pieces
    ]
    return torch.stack(kept).sum(0).float()


def whole(matrix: Tensor) -> Tensor:
    """A matrix from the pieces that the host split it into; in fp16x3 the second is held times 2^11."""
    if matrix.dim() == 2:
        return matrix.float()
    return sum((each.float() / 2048.0 ** (i * (each.dtype == torch.float16)) for i, each in enumerate(matrix)), ZERO)


def padded(plane: Tensor, tile: tuple[int, int]) -> Tensor:
    return F.pad(plane, (0, tile[1] - plane.shape[-1], 0, tile[0] - plane.shape[-2]))


def analysed(plane: Tensor, pair: Pair, chosen: Precision, u: int, v: int) -> tuple[Tensor, ...]:
    """The four quadrants (re, cos), (im, cos), (re, sin), (im, sin), each [..., v / 8, 8, u]."""
    z = product(product(whole(pair.columns), plane.mT, chosen), whole(pair.rows).mT, chosen)
    parts = z.reshape(*z.shape[:-2], v // 8, 2, 8, 2, u)
    return tuple(parts[..., part, :, turn, :] for turn in (0, 1) for part in (0, 1))


def emulated(x: Tensor, weight: Tensor, geometry: MapGeometry, name: str) -> Tensor:
    chosen, tile = precision(name), tiles(geometry)
    made = operators(geometry, chosen, CPU)
    cc, sc, cs, ss = analysed(padded(x, tile.size), made.analyse_map, chosen, tile.u, tile.v)
    w_cc, w_sc, w_cs, w_ss = analysed(padded(weight[:, 0], tile.taps), made.analyse_taps, chosen, tile.u, tile.v)
    y_cc = w_cc * cc + w_sc * sc + w_cs * cs + w_ss * ss
    y_sc = w_cc * sc - w_sc * cc - w_ss * cs + w_cs * ss
    y_cs = w_cc * cs - w_cs * cc - w_ss * sc + w_sc * ss
    y_ss = w_cc * ss + w_ss * cc - w_cs * sc - w_sc * cs
    parts = torch.stack([torch.stack([y_cc, y_cs], -2), torch.stack([y_sc, y_ss], -2)], -4)
    z = parts.reshape(*x.shape[:2], 2 * tile.v, 2 * tile.u)
    partial = product(z, whole(made.synthesise_output.rows).mT, chosen)
    y = product(partial.mT, whole(made.synthesise_output.columns).mT, chosen)
    return y[..., : geometry.out[0], : geometry.out[1]]


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize(
    ("side", "taps", "compression"), [(32, 7, 0.5), (32, 31, 0.5), (28, 29, 0.5), (56, 31, 0.5), (5, 3, 0.0)]
)
def test_emulated_rounding_is_within_the_class(seed: int, name: str, side: int, taps: int, compression: float):
    band = conv_band((side, side), (taps, taps), compression=compression)
    x = feature_map(random.Random(seed).choice(("white", "pink")), (3, 4, side, side), seed)
    weight = he_kernel((4, 1, taps, taps), seed)
    error = relative_error(emulated(x, weight, geometry_of(band), name), reference(x, weight, None, band, 4))
    assert error <= PRECISIONS[name].error / 1.5
    # The class is the one it is named after and not, by mistake, a finer one.
    finer = {"tf32": 2e-4, "fp16": 2e-4, "bf16": 1.5e-3, "bf16x3": 2e-6}
    assert error > finer.get(name, 3e-8)


def test_rounding_to_tf32_is_to_the_nearest():
    exact = torch.tensor([1.0, -1.5, 1.0 + 2**-10, 0.0])
    assert torch.equal(round_to_tf32(exact), exact)
    offset = torch.tensor([1.0 + 2**-11, 1.0 + 2**-11 - 2**-20, -1.0 - 2**-12])
    assert torch.equal(round_to_tf32(offset), torch.tensor([1.0 + 2**-10, 1.0, -1.0]))
