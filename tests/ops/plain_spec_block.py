"""SpecNet's block in dense torch and shapes to run it on, for the tests of the packed one."""

from __future__ import annotations

import random

import torch
from torch import Tensor

IMPLS = ("dense", "bitmap")
SIZES = (1, 2, 3, 5, 6, 7, 8, 11, 13)
Shape = tuple[int, int, int, int, int, int, int]


def shapes(seed: int, count: int) -> list[Shape]:
    """(batch, channels, outputs, rows, n, kernel height, kernel width): odd, even, prime, non-square, size 1."""
    draw = random.Random(seed)
    found: list[Shape] = [(1, 1, 1, 1, 1, 1, 1), (1, 2, 1, 1, 2, 1, 2), (2, 1, 3, 2, 1, 2, 1), (2, 3, 2, 7, 8, 3, 2)]
    while len(found) < count:
        rows, n = draw.choice(SIZES), draw.choice(SIZES)
        batch, channels, outputs = (draw.randint(1, 4) for _ in range(3))
        found.append((batch, channels, outputs, rows, n, draw.randint(1, min(rows, 4)), draw.randint(1, min(n, 4))))
    return found


def product(x_hat: Tensor, weight: Tensor, n: int) -> Tensor:
    """Y of a block; `weight` is a kernel or a spectrum."""
    w_hat = weight if weight.is_complex() else torch.fft.rfft2(weight, s=(x_hat.shape[2], n))
    return (x_hat.unsqueeze(1) * w_hat.conj()).sum(2)


def plain_block(x_hat: Tensor, weight: Tensor, beta: float, n: int, tanh: bool = True) -> Tensor:
    """The block in dense torch, differentiable; where beta is in a gap, pairs are kept or dropped together."""
    y_hat = product(x_hat, weight, n)
    z_hat = torch.complex(y_hat.real.tanh(), y_hat.imag.tanh()) if tanh else y_hat
    return torch.where(y_hat.detach().abs() > beta, z_hat, 0.0)
