"""Stored steps of whole networks over the compression or beta, relative to their uncompressed form (plots P01, P18)."""

from __future__ import annotations

from spectralbench.plot import Plot
from spectralbench.plot.steps import draw_stored

FIGURE = Plot(draw_stored, "history")
