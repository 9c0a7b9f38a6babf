"""A DFT of series in two stages, after Cooley and Tukey: two small products with twiddle factors in between."""
