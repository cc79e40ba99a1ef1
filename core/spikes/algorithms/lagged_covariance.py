"""The covariance of all histories of a stimulus, from products of frames and their history."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.frame_blocks import Reader, blocks
from retinakit.contracts.progress import Progress
from retinakit.kernels import as_numbers
from retinakit.spikes.algorithms.bit_sums import two_levels


class Histories(NamedTuple):
    """Covariance (feature, feature) and mean (feature,) of histories, and whether all their values
    are one of two levels."""

    covariance: NDArray[np.float64]
    mean: NDArray[np.float64]
    two_valued: bool


def lagged_covariance(
    stimulus: xr.DataArray, frames: NDArray[np.int64], lags: NDArray[np.int64], progress: Progress
) -> Histories:
    """The covariance of the histories of some frames.

    The sums of products for the lags (i + 1, j + 1) are those for (i, j), except at the ends of
    each run of consecutive frames. The sums for (0, j) are thus computed for all frames and the
    others only for the ends of the runs. This takes one product of check x check for each lag
    instead of one for each pair of lags.

    Args:
        stimulus: (frame, ...).
        frames: (window,), increasing, with a full history; lag 0 of each window.
        lags: (lag,), consecutive.
        progress: is called with the number of processed frames.
    """
    pixels, number = int(np.prod(stimulus.shape[1:])), len(lags)
    reach = int(lags[-1])
    chosen = np.zeros(len(stimulus), bool)
    chosen[frames] = True
    edges = np.diff(chosen.astype(np.int8), prepend=0, append=0)
    # The newest frame (lag 0) of the window before each run, and of the last window of each run.
    before, last = np.flatnonzero(edges == 1) - 1, np.flatnonzero(edges == -1) - 1
    second = np.zeros((number * pixels, number * pixels))
    first = np.zeros(number * pixels)
    shift: Any = None
    levels: Any = None
    two_valued = True
    read = Reader(stimulus, reach)
    done = 0
    for part in blocks(stimulus, reach, itemsize=np.dtype(np.float32).itemsize):
        raw = as_numbers(read[part].reshape(-1, pixels))
        levels = levels or two_levels(raw)
        two_valued &= levels is not None and bool(((raw == levels[0]) | (raw == levels[1])).all())
        values = raw.astype(np.float32)
        if shift is None:  # avoids cancellation in single precision; integers stay integers
            shift = np.rint(values.mean(0)) if raw.dtype.kind in "iu" else values.mean(0)
        values -= shift
        fresh = slice(done, part.stop)
        done = part.stop
        newest = np.flatnonzero(chosen[fresh]) + fresh.start - part.start
        now = values[newest - lags[0]]
        first[:pixels] += now.sum(0, dtype=float)
        for row, lag in enumerate(lags):
            columns = slice(row * pixels, (row + 1) * pixels)
            second[:pixels, columns] += now.T @ values[newest - lag]
        for sign, ends in ((1, before), (-1, last)):
            # The last lag has no successor.
            here = ends[np.searchsorted(ends, fresh.start - (sign > 0)) :]
            here = here[: np.searchsorted(here, fresh.stop - (sign > 0))] - part.start
            some = values[here[:, None] - lags[:-1]].reshape(len(here), len(second) - pixels)
            second[pixels:, pixels:] += sign * (some.T @ some)
            first[pixels:] += sign * some.sum(0, dtype=float)
        progress(part.stop, len(stimulus), "covariance of the stimulus")
    second[pixels:, :pixels] = second[:pixels, pixels:].T
    places = [slice(row * pixels, (row + 1) * pixels) for row in range(number)]
    for place, following in pairwise(places):
        second[following, pixels:] += second[place, : (number - 1) * pixels]
        first[following] += first[place]
    first /= len(frames)
    second /= len(frames)
    second -= np.outer(first, first)
    return Histories((second + second.T) / 2, first + np.tile(shift, number), two_valued)
