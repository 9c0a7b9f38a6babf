"""Band-limited convolution in one or two dimensions: geometry, reference, baselines, and the truncated-DFT route."""
