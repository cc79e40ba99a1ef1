"""Several algorithms for spike-triggered sums, and the choice between them.

Each algorithm adds Σ_t r[t, c] · s[t - l, p] over a block of frames to `sums (cell, lag, pixel)`.
"""
