"""spectralbench: one harness for time, memory and accuracy of spectral convolution, and its history in git."""

__version__ = "0.1.0"
