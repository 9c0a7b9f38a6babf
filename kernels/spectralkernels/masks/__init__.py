"""Masks of the half spectrum: which frequencies a convolution keeps, and how much of each.

A mask is a Bool or Float tensor [N_h, N_w // 2 + 1], or [batch, 1, N_h, N_w // 2 + 1] with one mask per sample, in FFT
order: row u and N_h - u are the frequencies +u and -u, |u| = min(u, N_h - u); column v is the frequency v >= 0.

Hermitian rule. The column 0 and, for even N_w, the column N_w / 2 are self-conjugate: their cells (u, v) and (-u, v)
hold one complex number and its conjugate, so that a real map exists only if both are treated alike. `hermitian` makes
any mask so: a pair is kept if either cell is (bool), or both get the mean of their weights (float), which is what the
real part of an inverse transform does. Every mask made here already is.

`n` is the grid (N_h, N_w) of the convolution, not the size of the map: see `fft_grid`.
"""

from spectralkernels.masks.bands import energy, energy_index, radial, rectangular, ring
from spectralkernels.masks.dropout import cell_dropout, dropout_floor, frequency_dropout
from spectralkernels.masks.geometry import fft_grid, hermitian
from spectralkernels.masks.modes import mode_list
from spectralkernels.masks.window import soft_window, soft_window_side
from spectralkernels.modes import ModeList

__all__ = [
    "ModeList",
    "cell_dropout",
    "dropout_floor",
    "energy",
    "energy_index",
    "fft_grid",
    "frequency_dropout",
    "hermitian",
    "mode_list",
    "radial",
    "rectangular",
    "ring",
    "soft_window",
    "soft_window_side",
]
