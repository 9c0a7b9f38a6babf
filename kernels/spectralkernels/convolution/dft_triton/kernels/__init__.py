"""The Triton kernels of the truncated DFT and of the product over channels (triton is imported here and in `launches`).

Sizes of planes and spectra are constexprs, as in an FFT plan: a layer has few, and the compiler then knows every
alignment. Batch and channels are run-time. Matrices come padded with zeros to whole tiles (see `matrices`), so that
only loads of maps and stores need masks.
"""
