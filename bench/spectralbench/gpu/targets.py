"""What the kernels are held to on an H200: one entry per promise, judged by `summary`.

Every promise is for CUDA graphs, in one run, against rivals of the same accuracy class or a coarser one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spectralbench.identity import Identity
from spectralkernels.declare import Case, Scalar


@dataclass(frozen=True, slots=True)
class Place:
    """Which case a promise is about: parameters that are not named may have any value."""

    operation: str
    params: Mapping[str, Scalar]
    dtype: str
    pass_: str

    def holds(self, operation: str, params: Mapping[str, Scalar], dtype: str, pass_: str) -> bool:
        """Whether a case of these fields is of this place."""
        return (operation, dtype, pass_) == (self.operation, self.dtype, self.pass_) and all(
            params.get(name) == value for name, value in self.params.items()
        )

    def answers(self, question: Identity, params: Mapping[str, Scalar]) -> bool:
        """Whether what was measured is of this place. params: of its case."""
        return self.holds(question.operation, params, question.dtype, question.pass_)


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """Our fastest kernel against the fastest of `rivals`: their time over ours is at least `least`.

    accuracy: the class of the rivals; the kernel must be of that class or finer. forecast: microseconds of our kernel,
    from - to, and forecast_ratio: their time over ours, as both were predicted before any kernel had met a GPU; to be
    beaten, and never to be changed after the fact.
    """

    name: str
    place: Place
    rivals: tuple[str, ...]
    accuracy: str
    least: float
    forecast: tuple[float, float] | None = None
    forecast_ratio: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that a forward pass saves for backward, less the weight, over the bytes of x in float32: at most `most`.

    The weight is left out because a network holds it anyway.
    """

    name: str
    place: Place
    accuracy: str
    most: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes read and stored per second over the measured copy bandwidth, by our fastest kernel: at least `least`."""

    name: str
    place: Place
    least: float


Target = SpeedUp | Saved | Bandwidth

_CUDNN = ("direct_uncompressed", "direct_uncompressed_channels_last")
_CUDNN_TF32 = ("direct_uncompressed_tf32", "direct_uncompressed_channels_last_tf32")
_FULL_FFT = ("torch_fft", "torch_fft_fast")
_TORCH_FFT = ("torch_fft", "torch_fft_fast_band")
_IMPLICIT_GEMM = ("implicit_gemm_triton_uncompressed",)
_PACKING = ("bitmap", "index", "csr", "coo")


def _conv(
    batch: int,
    channels: int,
    side: int,
    kernel_size: int,
    dtype: str,
    pass_: str,
    compression: float = 0.5,
    **rest: int,
) -> Place:
    sizes = {"batch": batch, "in_channels": channels, "out_channels": channels, "height": side, "width": side}
    params: dict[str, Scalar] = {**sizes, "kernel_size": kernel_size, "compression": compression, **rest}
    return Place("band_limited_conv2d", {"groups": 1, "input": "pink", **params}, dtype, pass_)


_MULTIPLY = Place(
    "masked_multiply",
    {"batch": 128, "in_channels": 64, "out_channels": 64, "height": 35, "width": 35, "compression": 0.5, "groups": 1},
    "complex64",
    "forward",
)
_FUSED, _FUSED_STEP, _FULL_BAND = (
    _conv(8, 768, 32, 31, "bfloat16", pass_, compression, groups=768)
    for pass_, compression in (("forward", 0.5), ("both", 0.5), ("forward", 0.0))
)
_LARGE_KERNEL = _conv(32, 256, 28, 29, "bfloat16", "forward", groups=256)
_DENSE_7 = _conv(32, 64, 56, 7, "float32", "forward")
_DENSE_7_HALF = _conv(32, 64, 56, 7, "bfloat16", "forward")
_LAYER_3 = _conv(128, 256, 8, 3, "float32", "forward")
_LAYER_4 = _conv(128, 512, 4, 3, "float32", "forward")
_STEP = _conv(128, 64, 32, 3, "float32", "both")
_PACK = Place(
    "threshold_spectrum",
    {"batch": 128, "channels": 64, "height": 32, "width": 32, "beta": 1.0, "relative": False, "input": "pink"},
    "float32",
    "forward",
)

TARGETS: tuple[Target, ...] = (
    SpeedUp("masked multiply over torch crop, complex bmm, pad", _MULTIPLY, ("complex_bmm",), "fp32", 2.5, (50, 58)),
    SpeedUp("masked multiply over the 2019 kernel", _MULTIPLY, ("triton_2019",), "fp32", 10.0, (50, 58)),
    SpeedUp("depthwise 32x32 K31 bf16, forward, over torch.fft", _FUSED, _TORCH_FFT, "bf16", 10.0, (10, 13), (20, 30)),
    SpeedUp("depthwise 32x32 K31 bf16, forward + backward, over torch.fft", _FUSED_STEP, _TORCH_FFT, "bf16", 8.0),
    SpeedUp(
        "depthwise 32x32 K31 bf16, full band, over torch.fft", _FULL_BAND, _FULL_FFT, "bf16", 5.0, (18, 24), (14, 18)
    ),
    SpeedUp("depthwise 28x28 K29 bf16 over cuDNN", _LARGE_KERNEL, _CUDNN, "bf16", 8.0, (11, 14)),
    SpeedUp("depthwise 28x28 K29 bf16 over an implicit GEMM", _LARGE_KERNEL, _IMPLICIT_GEMM, "bf16", 1.0),
    SpeedUp("dense 7x7 56x56 over cuDNN TF32", _DENSE_7, _CUDNN_TF32, "tf32", 2.0, (60, 75), (1.9, 2.8)),
    SpeedUp(
        "dense 7x7 56x56 bf16 over cuDNN channels_last", _DENSE_7_HALF, _CUDNN[1:], "bf16", 1.3, (52, 65), (1.4, 2.0)
    ),
    SpeedUp("dense 3x3 ResNet-18 layer 3 over cuDNN TF32", _LAYER_3, _CUDNN_TF32, "tf32", 1.3, (18, 24), (1.3, 2.2)),
    SpeedUp("dense 3x3 ResNet-18 layer 4 over cuDNN TF32", _LAYER_4, _CUDNN_TF32, "tf32", 1.3, (19, 26), (1.3, 2.2)),
    SpeedUp(
        "whole band-limited conv, forward + backward, over torch.fft",
        _STEP,
        _TORCH_FFT,
        "fp32",
        5.0,
        (210, 240),
        (4.3, 6.5),
    ),
    Saved("whole band-limited conv, saved activations, float32", _STEP, "fp32", 0.54),
    Saved("whole band-limited conv, saved activations, bf16 spectrum", _STEP, "bf16", 0.27),
    SpeedUp("SpecNet packing over torch", _PACK, _PACKING, "fp32", 5.0, (20, 22)),
    Bandwidth("SpecNet packing, share of copy bandwidth", _PACK, 0.75),
)


def _series(length: int) -> Place:
    sizes: dict[str, Scalar] = {"batch": 8, "in_channels": 768, "length": length, "kernel_size": length - 1}
    return Place("band_limited_conv1d", {**sizes, "compression": 0.0, "groups": 768}, "bfloat16", "forward")


PUBLISHED: tuple[SpeedUp, ...] = (
    *(
        SpeedUp(
            f"nvSubquadratic fused_fft_conv2d on an H100: {side} pixels, bf16, forward + backward, over torch.fft",
            _conv(8, 768, side, side - 1, "bfloat16", "both", 0.0, groups=768), _FULL_FFT, "bf16", ratio,
        )
        for side, ratio in ((16, 1.9), (32, 4.4), (64, 4.9))
    ),
    *(
        SpeedUp(
            f"FlashFFTConv on an H100 (5.6x to 7.9x): series of {length}, over torch.fft",
            _series(length), _FULL_FFT, "bf16", 5.6,
        )
        for length in (256, 1024, 4096, 8192)
    ),
    *(
        SpeedUp(
            f"RepLKNet's implicit GEMM on an RTX 2080 Ti: depthwise 32x32 K{kernel_size}, over cuDNN",
            _conv(64, 384, 32, kernel_size, "float32", "forward", 0.0, groups=384), _CUDNN, "fp32", ratio,
        )
        for kernel_size, ratio in ((31, 20.0), (7, 2.0))
    ),
)  # fmt: skip
"""What others publish for kernels of their own, full band: places to reach, judged on our kernels and not promised.

least: the ratio that they publish, on their hardware.
"""


def rank(operation: str, case: Case, pass_: str) -> int:
    """The position of the first promise about a case; one past the last if there is none."""
    params = dict(case.params)
    places = (target.place for target in TARGETS)
    found = (at for at, place in enumerate(places) if place.holds(operation, params, case.dtype, pass_))
    return next(found, len(TARGETS))
