"""What was predicted before any kernel had met a GPU: to be beaten, and never to be changed after the fact.

Estimates for an H100 in CUDA graphs, from bytes and instructions counted in the compiled kernels. Beside them the
figures that others publish for kernels of their own, with their hardware: places to reach, not rivals in a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectralbench.gpu.judge import Judgement
from spectralbench.gpu.tables import microseconds, table


@dataclass(frozen=True, slots=True)
class Forecast:
    """seconds: of our kernel, from - to. ratio: their time over ours, from - to, or None where none was given."""

    seconds: tuple[float, float]
    ratio: tuple[float, float] | None = None


def _us(least: float, most: float, ratio: tuple[float, float] | None = None) -> Forecast:
    return Forecast((least * 1e-6, most * 1e-6), ratio)


FORECASTS: Mapping[str, Forecast] = {
    "masked multiply over torch crop, complex bmm, pad": _us(50, 58),
    "depthwise 32x32 K31 bf16, forward, over torch.fft": _us(10, 13, (20, 30)),
    "depthwise 32x32 K31 bf16, full band, over torch.fft": _us(18, 24, (14, 18)),
    "depthwise 28x28 K29 bf16 over cuDNN": _us(11, 14),
    "dense 7x7 56x56 over cuDNN TF32": _us(60, 75, (1.9, 2.8)),
    "dense 7x7 56x56 bf16 over cuDNN channels_last": _us(52, 65, (1.4, 2.0)),
    "dense 3x3 ResNet-18 layer 3 over cuDNN TF32": _us(18, 24, (1.3, 2.2)),
    "dense 3x3 ResNet-18 layer 4 over cuDNN TF32": _us(19, 26, (1.3, 2.2)),
    "whole band-limited conv, forward + backward, over torch.fft": _us(210, 240, (4.3, 6.5)),
    "SpecNet packing over torch": _us(20, 22),
}
"""Name of a target -> what was predicted for it."""

PUBLISHED: Sequence[tuple[str, str, str]] = (
    (
        "nvSubquadratic fused_fft_conv2d, B8 C768 depthwise, full band, bf16, forward + backward",
        "H100",
        "1.9x / 4.4x / 4.9x over torch.fft at 16 / 32 / 64 pixels",
    ),
    ("FlashFFTConv, 1-D depthwise, 256 to 8K", "H100", "5.6x to 7.9x over PyTorch"),
    ("RepLKNet's implicit GEMM, depthwise", "RTX 2080 Ti", "about 20x over cuDNN at 31x31, about 2x at 7x7"),
)
"""Kernel and case, hardware, and the figure that its authors publish."""


def markdown(verdicts: Sequence[Judgement]) -> str:
    """The forecast beside what was measured; a cell stays empty where nothing was."""
    rows = []
    for verdict in verdicts:
        forecast = FORECASTS.get(verdict.target.name)
        if forecast is None:
            continue
        lines = verdict.lines or (None,)
        for line in lines:
            rows.append(
                (
                    verdict.target.name,
                    _range([microseconds(seconds) for seconds in forecast.seconds]),
                    _range([f"{ratio:g}x" for ratio in forecast.ratio or ()]),
                    line.state if line else "",
                    microseconds(line.seconds) if line and line.seconds else "",
                    f"{line.value:.2f}x" if line and line.rival else "",
                )
            )
    heads = ("target", "forecast", "forecast ratio", "state", "measured", "measured ratio")
    return "\n".join(
        [
            "# Forecast and measurement on a GPU",
            "",
            "Forecasts are estimates for an H100 in CUDA graphs, made before any kernel had met a GPU.",
            "",
            *table(heads, rows),
            "",
            "## What others publish for their kernels",
            "",
            *table(("kernel", "hardware", "published"), PUBLISHED),
            "",
        ]
    )


def _range(ends: Sequence[str]) -> str:
    return " to ".join(ends)
