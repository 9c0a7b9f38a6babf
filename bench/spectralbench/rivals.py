"""Who stands for what a user has today: the library convolution in each layout, torch.fft at each FFT size.

A ratio is fair against the best of these alone. Readers of records know no torch, so that the names are declared here;
a test holds them to the operations' own declarations. Coarser roundings (bf16, tf32) are a class of their own and
stand for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

CONV: Mapping[str, str] = {
    "direct": "NCHW",
    "direct_uncompressed": "NCHW",
    "direct_channels_last": "channels_last",
    "direct_uncompressed_channels_last": "channels_last",
    "direct_converted": "channels_last, converted in the clock",
    "direct_uncompressed_converted": "channels_last, converted in the clock",
}
"""The convolution of cuDNN or oneDNN in float32, by how it holds its maps."""

TORCH_FFT: Mapping[str, str] = {
    "torch_fft": "tight N",
    "torch_fft_fast": "7-smooth N",
    "torch_fft_fast_band": "7-smooth N",
}
"""torch.fft as the papers' code uses it, by its FFT size."""

FAMILIES: Mapping[str, Mapping[str, str]] = {
    "conv": CONV,
    "torch.fft": TORCH_FFT,
    "dense": {"dense": "unpacked"},
    "einsum": {"einsum": "torch.einsum"},
}
WORDS: Mapping[str, str] = {"conv": "torch conv", "torch.fft": "torch.fft", "dense": "dense", "einsum": "torch.einsum"}
"""The families as a reader calls them."""

SLOW = 1.5
"""A member of a family this many times slower than its best is on a slow path: it is marked and never quoted."""

FROZEN = frozenset(
    {"dft_gemm_frozen", "dft_native_frozen", "torch_fft_frozen"}
    | {f"dft_triton_frozen{rounding}" for rounding in ("", "_tf32", "_fp16", "_bf16")}
)
"""Implementations whose weight is transformed outside the clock: for inference alone, compared with nobody."""


def family(name: str) -> str | None:
    """`conv`, `torch.fft`, or None for an implementation that stands for itself."""
    return next((family for family, members in FAMILIES.items() if name in members), None)
