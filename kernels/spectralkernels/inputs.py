"""What the operations are measured on: white noise, 1/f noise, and patches of real photographs.

The kind of input is part of a case's identity, because thresholded spectra and approximation errors depend on it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from spectralkernels.errors import RangeError, Unsupported

KINDS = ("white", "pink", "photo")


def feature_map(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Planes of one kind, each with zero mean and unit rms (planes of one sample: not normalised).

    kind: "white" (independent normal), "pink" (amplitude 1/f along the spatial axes, like natural images) or "photo"
    (random patches of scikit-learn's two sample photographs).
    shape: [batch, channel, length] or [batch, channel, height, width]. A series of kind "photo" is a line of an image.
    Returns: Float32 of that shape, CPU, a function of the arguments alone.
    Raises: RangeError on an unknown kind; Unsupported where scikit-learn is missing.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "white":
        return torch.randn(shape, generator=generator)
    if kind == "pink":
        return _standardised(_pink(shape, generator))
    if kind == "photo":
        return _standardised(_photo_patches(shape, generator))
    raise RangeError(f"unknown input kind {kind!r}; known: {', '.join(KINDS)}")


def he_kernel(shape: tuple[int, ...], seed: int) -> Tensor:
    """Kernel weights with He's variance 2 / fan-in, as a fresh layer has them.

    shape: [out_channel, in_channel / groups, *kernel]. Returns: Float32 of that shape, CPU.
    """
    fan_in = max(1, int(torch.Size(shape[1:]).numel()))
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5


def _pink(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    spatial = shape[2:]
    axes = tuple(range(2, len(shape)))
    squares = torch.zeros(())
    for axis, n in enumerate(spatial):
        frequencies = torch.fft.rfftfreq(n) if axis == len(spatial) - 1 else torch.fft.fftfreq(n)
        squares = squares.unsqueeze(-1) + frequencies.square()
    radius = squares.sqrt()
    radius[(0,) * len(spatial)] = float("inf")  # no mean
    spectrum = torch.fft.rfftn(torch.randn(shape, generator=generator), dim=axes) / radius
    return torch.fft.irfftn(spectrum, s=spatial, dim=axes)


def _photo_patches(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    photographs = _photographs()  # [6, 427, 640]
    height, width = (1, shape[2]) if len(shape) == 3 else shape[2:]
    repeats = [-(-side // whole) for side, whole in zip((height, width), photographs.shape[1:], strict=True)]
    canvas = photographs.repeat(1, *repeats)
    count = shape[0] * shape[1]
    plane = torch.randint(len(canvas), (count,), generator=generator)
    top = torch.randint(canvas.shape[1] - height + 1, (count,), generator=generator)
    left = torch.randint(canvas.shape[2] - width + 1, (count,), generator=generator)
    patches = torch.empty(count, height, width)
    for i, (p, y, x) in enumerate(zip(plane.tolist(), top.tolist(), left.tolist(), strict=True)):
        patches[i] = canvas[p, y : y + height, x : x + width]
    return patches.reshape(shape)


@cache
def _photographs() -> Tensor:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise Unsupported("input='photo' needs scikit-learn: pip install 'spectralbench[images]'") from error
    images = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    return images.permute(0, 3, 1, 2).reshape(-1, *images.shape[1:3]).float() / 255.0


def _standardised(planes: Tensor) -> Tensor:
    axes = tuple(range(2, planes.dim()))
    centred = planes - planes.mean(dim=axes, keepdim=True) if planes[0, 0].numel() > 1 else planes
    rms = centred.square().mean(dim=axes, keepdim=True).sqrt()
    return centred / torch.where(rms > 1e-6, rms, 1.0)
