"""What was predicted before any kernel had met a GPU, beside what was measured.

Estimates for an H100 in CUDA graphs, from bytes and instructions counted in the compiled kernels. Below them the
figures that others publish for kernels of their own, with their hardware: places to reach, not rivals in a run.
"""

from __future__ import annotations

from collections.abc import Sequence

from spectralbench.gpu.judge import Judgement
from spectralbench.gpu.targets import SpeedUp
from spectralbench.quantity import microseconds
from spectralbench.text import lined_up

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
    rows = [
        (
            target.name,
            " to ".join(f"{time:.4g} us" for time in target.forecast),
            " to ".join(f"{ratio:g}x" for ratio in target.forecast_ratio or ()),
            line.state if line else "",
            microseconds(line.seconds) if line and line.seconds else "",
            f"{line.value:.2f}x" if line and line.rival else "",
        )
        for verdict in verdicts
        if isinstance(target := verdict.target, SpeedUp) and target.forecast is not None
        for line in verdict.lines or (None,)
    ]
    heads = ("target", "forecast", "forecast ratio", "state", "measured", "measured ratio")
    return "\n".join(
        [
            "# Forecast and measurement on a GPU",
            "",
            "Forecasts are estimates for an H100 in CUDA graphs, made before any kernel had met a GPU.",
            "",
            *lined_up(heads, rows),
            "",
            "## What others publish for their kernels",
            "",
            *lined_up(("kernel", "hardware", "published"), PUBLISHED),
            "",
        ]
    )
