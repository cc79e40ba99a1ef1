"""Spike-triggered sums by several algorithms, and the choice among them.

Each algorithm adds Σ_t r[t, c] · s[t - l, p] over a block of frames to sums (cell, lag, pixel).
"""
