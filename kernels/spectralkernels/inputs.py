"""What the operations are measured on: white noise, 1/f noise, and patches of real photographs.

The kind of input is part of a case's identity, because thresholded spectra and approximation errors depend on it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from spectralkernels.errors import RangeError, Unsupported

KINDS = ("white", "pink", "photo")
PHOTOGRAPHS = "pip install 'spectralbench[images]'"


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
    """The two photographs that come with scikit-learn, plane by plane: float32 [6, 427, 640] from 0 to 1.

    Read without importing it: that takes longer than all other imports together, in every process that measures.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise Unsupported(f"input='photo' needs pillow: {PHOTOGRAPHS}") from error
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise Unsupported(f"input='photo' needs scikit-learn: {PHOTOGRAPHS}")
    images = []
    for name in ("china.jpg", "flower.jpg"):
        path = Path(package.origin).parent / "datasets" / "images" / name
        try:
            with Image.open(path) as image:
                values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                images.append(values.reshape(image.height, image.width, 3))
        except OSError as error:
            raise Unsupported(f"input='photo' needs scikit-learn's {name}: {error}; {PHOTOGRAPHS}") from error
    planes = torch.stack(images).permute(0, 3, 1, 2)
    return planes.reshape(-1, *planes.shape[2:]).float() / 255.0


def _standardised(planes: Tensor) -> Tensor:
    axes = tuple(range(2, planes.dim()))
    centred = planes - planes.mean(dim=axes, keepdim=True) if planes[0, 0].numel() > 1 else planes
    rms = centred.square().mean(dim=axes, keepdim=True).sqrt()
    return centred / torch.where(rms > 1e-6, rms, 1.0)
