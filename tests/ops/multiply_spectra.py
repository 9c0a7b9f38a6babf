"""Spectra, masks and sizes for the tests of masked_multiply, and the error of an answer."""

from __future__ import annotations

import torch
from torch import Tensor

SIZES = ((1, 1), (1, 5), (7, 1), (5, 3), (7, 4), (8, 5), (13, 7), (16, 9), (11, 12))


def relative_error(y: Tensor, expected: Tensor) -> float:
    """Relative L2; NaN where y has one, so that no comparison passes."""
    y, expected = y.detach().to(torch.complex128), expected.detach().to(torch.complex128)
    return float(torch.linalg.vector_norm(y - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30))


def spectrum(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def some_mask(kind: str, plane: tuple[int, int], real: torch.dtype = torch.float32) -> Tensor | None:
    """none | low-pass band | random cells | soft window with zeros | nothing kept | all kept."""
    match kind:
        case "none":
            return None
        case "band":
            mask = torch.zeros(plane, dtype=torch.bool)
            mask[: (plane[0] + 1) // 2, : (plane[1] + 1) // 2] = True
            return mask
        case "cells":
            return torch.rand(plane) < 0.3
        case "soft":
            return (torch.rand(plane) * (torch.rand(plane) < 0.6)).to(real)
        case "empty":
            return torch.zeros(plane, dtype=torch.bool)
        case _:
            return torch.ones(plane, dtype=torch.bool)


MASKS = ("none", "band", "cells", "soft", "empty", "all")
