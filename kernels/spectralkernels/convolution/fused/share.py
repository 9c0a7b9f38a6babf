"""What a program of a fused convolution is given: warps, and images of its channel."""

from __future__ import annotations

from dataclasses import dataclass

ENOUGH_WARPS = 1024
"""About eight warps for each of an H200's 132 multiprocessors."""


@dataclass(frozen=True, slots=True)
class Share:
    """The warps of a program, and the images of its channel that it works on, one after another."""

    warps: int
    images: int


def images_per_program(batch: int, channels: int, num_warps: int, most: int) -> int:
    """How many planes share one transform of their kernel: as many as leave a large GPU enough programs."""
    images = most
    while images > 1 and (images >= 2 * batch or -(-batch // images) * channels * num_warps < ENOUGH_WARPS):
        images //= 2
    return images
