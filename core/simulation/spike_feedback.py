"""Spikes of cells whose own spikes drive and suppress them."""

from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def _simulate(
    drive: NDArray[np.float64],
    filters: NDArray[np.float64],
    begins: NDArray[np.int64],
    most: NDArray[np.float64],
    ceiling: NDArray[np.float64],
    softplus: bool,
    random: np.random.Generator,
    counts: NDArray[np.uint16],
    exceeded: NDArray[np.int64],
) -> None:
    repeats, frames, cells = counts.shape
    lags = filters.shape[2]
    feedback = np.empty((frames, cells))
    for repeat in range(repeats):
        feedback[:] = 0.0
        for piece in range(len(begins)):
            end = begins[piece + 1] if piece + 1 < len(begins) else frames
            for t in range(begins[piece], end):
                for cell in range(cells):
                    u = min(drive[t, cell] + feedback[t, cell], 500.0)
                    rate = np.log1p(np.exp(u)) if softplus else np.exp(u)
                    if rate > ceiling[cell]:
                        exceeded[cell] += 1
                        rate = ceiling[cell]
                    count = min(random.poisson(rate), most[cell])
                    if count == 0:
                        continue
                    counts[repeat, t, cell] = count
                    for lag in range(min(lags, end - t - 1)):
                        for target in range(cells):
                            feedback[t + 1 + lag, target] += count * filters[target, cell, lag]


def simulate_with_feedback(
    drive: NDArray[np.float64],
    filters: NDArray[np.float64],
    pieces: list[slice],
    *,
    repeats: int,
    seed: int,
    most: NDArray[np.float64],
    ceiling: NDArray[np.float64],
    nonlinearity: Literal["exponential", "softplus"] = "exponential",
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Poisson spike counts whose rates depend on the spikes before (Pillow et al. 2008, eq. 1).

    The rate of a cell is f(drive + Σ_source Σ_lag filters[cell, source, lag - 1] · count[t - lag,
    source]). At the start of a segment there are no spikes before.

    Args:
        drive: (frame, cell), of the stimulus and the offset.
        filters: (cell, source, lag); the first lag is 1, the frame before.
        pieces: the segments, as returned by `retinakit.contracts.segments`.
        repeats: the number of simulated repeats.
        seed: of the random draws.
        most: (cell,) the largest count of a bin; infinite for no limit.
        ceiling: (cell,) rates above this, in spikes per bin, are reduced to it and counted.
        nonlinearity: f, exp(u) or log(1 + exp(u)).

    Returns:
        The counts (repeat, frame, cell), and the number of bins (cell,) whose rate was above the
        ceiling, in all repeats together.

    Example:
        >>> silence = np.full((1, 1, 3), -100.0)  # no spike for three bins after a spike
        >>> counts, _ = simulate_with_feedback(
        ...     np.full((1000, 1), 5.0), silence, [slice(0, 1000)], repeats=1, seed=0,
        ...     most=np.array([1.0]), ceiling=np.array([1e3]),
        ... )
        >>> int(counts.sum())
        250
    """
    counts = np.zeros((repeats, *drive.shape), np.uint16)
    exceeded = np.zeros(drive.shape[1], np.int64)
    _simulate(
        np.ascontiguousarray(drive, dtype=float),
        np.ascontiguousarray(filters, dtype=float),
        np.array([piece.start for piece in pieces], np.int64),
        np.minimum(most, np.iinfo(np.uint16).max).astype(float),
        np.asarray(ceiling, float),
        nonlinearity == "softplus",
        np.random.default_rng(seed),
        counts,
        exceeded,
    )
    return counts, exceeded
