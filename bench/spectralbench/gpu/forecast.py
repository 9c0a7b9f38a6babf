"""What was predicted before any kernel had met a GPU, beside what was measured.

Estimates for an H100 in CUDA graphs, from bytes and instructions counted in the compiled kernels. Below them the
figures that others publish for kernels of their own, with their hardware, beside ours at their shapes and full band.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from spectralbench.gpu.judge import Judgement, Line
from spectralbench.gpu.targets import SpeedUp
from spectralbench.quantity import microseconds
from spectralbench.text import lined_up

BESIDE = (
    "Of the same estimates: no kernel can take less than 8.4 us for depthwise 32x32 K31 bf16, forward; "
    "the masked multiply meets its target with a chance of 0.55 to 0.6."
)


def markdown(verdicts: Sequence[Judgement], published: Sequence[Judgement]) -> str:
    """The forecast beside what was measured; a cell stays empty where nothing was. published: of `PUBLISHED`."""
    rows = [
        (
            target.name,
            " to ".join(f"{time:.4g} us" for time in target.forecast),
            " to ".join(f"{ratio:g}x" for ratio in target.forecast_ratio or ()),
            f"{target.least:g}x",
            *_measured(line),
        )
        for verdict in verdicts
        if isinstance(target := verdict.target, SpeedUp) and target.forecast is not None
        for line in verdict.lines or (None,)
    ]
    theirs = [
        (one.target.name, f"{one.target.least:g}x", *_measured(line))
        for one in published
        if isinstance(one.target, SpeedUp)
        for line in one.lines or (None,)
    ]
    heads = ("target", "forecast", "forecast ratio", "wanted ratio", "state", "measured", "measured ratio")
    return "\n".join(
        [
            "# Forecast and measurement on a GPU",
            "",
            "Forecasts are estimates for an H100 in CUDA graphs, made before any kernel had met a GPU.",
            "",
            *lined_up(heads, rows),
            "",
            *textwrap.wrap(BESIDE, 120),
            "",
            "## What others publish for their kernels, and ours at the same shapes, full band",
            "",
            *lined_up(("theirs", "published ratio", "state", "ours", "our ratio"), theirs),
            "",
        ]
    )


def _measured(line: Line | None) -> tuple[str, str, str]:
    if line is None or line.seconds is None:
        return "", "", ""
    return line.state, microseconds(line.seconds), f"{line.value:.2f}x"
