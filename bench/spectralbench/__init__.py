"""spectralbench: one harness for time, memory and accuracy of spectral convolution, and its history in git."""
