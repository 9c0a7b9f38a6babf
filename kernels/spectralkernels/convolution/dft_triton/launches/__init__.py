"""From tensors to launches: which kernel, which tiles, how many warps (triton is imported here and in `kernels`)."""
