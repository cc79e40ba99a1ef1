"""Spike-triggered statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.errors import RecordingError, UserError, nearest
from retinakit.kernels import as_numbers
from retinakit.progress import Progress, silent
from retinakit.recording import lag_coordinate
from retinakit.triggered.choice import ALGORITHMS, Task, order, possible
from retinakit.triggered.covariance import Windows, require_memory, weighted_covariance
from retinakit.triggered.response import Response

BLOCK_BYTES = 256 * 2**20
"""How much of the stimulus is held as numbers at a time."""


def sta(
    splits: xr.Dataset | Sequence[xr.Dataset],
    lags: int = 20,
    *,
    first_lag: int = 0,
    algorithm: str = "auto",
    threads: int = 1,
    progress: Progress = silent,
) -> xr.Dataset:
    """Spike-triggered average of every cell.

    sta[c, l, p] = Σ_t r[t, c] · s[t - l, p] / Σ_t r[t, c], over the frames t that have a full
    history in their segment and a response. Stimuli of 8 bits and counts are summed exactly. The
    stimulus is read in blocks, so it may be larger than memory.

    Args:
        splits: a split of a recording, or several to average over. Repeats are averaged first.
        lags: how many lags.
        first_lag: the first of them; 0 is the frame shown in the response's own bin.
        algorithm: "bits" counts the bits of a two-valued stimulus under counts, "int8" sums an
            8-bit stimulus under counts, "float" any stimulus over the frames with a response;
            "toeplitz" and "fft" are matrix products over all frames, in single precision. "auto"
            takes the one that is expected to be the fastest, and an exact one where there is one.
        threads: of the first three; the products follow the settings of NumPy's BLAS.
        progress: is told the frames done.

    Returns:
        `sta (cell, lag, [channel,] y, x)` with the coordinate `lag_time`, and `spikes (cell)`: the
        spikes that were counted. The attributes say which `algorithm` was used, and why.

    Raises:
        RecordingError: if no frame has so long a history.
        UserError: if the named algorithm cannot serve the stimulus or the response.
    """
    splits = [splits] if isinstance(splits, xr.Dataset) else list(splits)
    reach = first_lag + lags
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise UserError(
            f"there is no algorithm '{algorithm}'; {nearest(algorithm, ['auto', *ALGORITHMS])}"
        )
    responses = [Response(split, reach) for split in splits]
    if not any(response.full.any() for response in responses):
        raise RecordingError(f"no segment is as long as {reach} frames of history; use fewer lags")
    total: Any = None
    used: dict[str, str] = {}
    for split, response in zip(splits, responses, strict=True):
        sums, how = _sums(
            split["stimulus"], response, lags, first_lag, algorithm, threads, progress
        )
        used |= how
        if response.repeats != 1:
            sums = sums / response.repeats
        total = sums if total is None else total + sums
    spikes = sum(response.total for response in responses)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = total / np.reshape(spikes, (-1, *[1] * (total.ndim - 1)))
    first = splits[0]
    dims = ("cell", "lag", *first["stimulus"].dims[1:])
    lag = np.arange(first_lag, reach)
    coords: dict[str, Any] = lag_coordinate(lag, first.attrs["frame_interval"])
    coords |= {str(name): first[name].variable for name in dims if name in first.coords}
    units = first["stimulus"].attrs.get("units", "contrast")
    return xr.Dataset(
        {"sta": (dims, average, {"units": units}), "spikes": ("cell", spikes)},
        coords=coords,
        attrs={"algorithm": ", ".join(used), "algorithm_why": "; ".join(used.values())},
    )


def _sums(
    stimulus: xr.DataArray,
    response: Response,
    lags: int,
    first_lag: int,
    algorithm: str,
    threads: int,
    progress: Progress,
) -> tuple[NDArray[Any], dict[str, str]]:
    """Σ_t r[t, c] · s[t - l, p], (cell, lag, [channel,] y, x), and the algorithms with reasons."""
    shape = stimulus.shape[1:]
    pixels, reach = int(np.prod(shape)), first_lag + lags
    exact = (
        response.counts
        and stimulus.dtype.kind in "biu"
        and stimulus.dtype.itemsize == 1
        and algorithm in ("auto", "bits", "int8")
    )
    total = np.zeros((response.cells, lags, pixels), np.int64 if exact else np.float64)
    task = Task(len(response.full), pixels, response.cells, lags, response.terms)
    used: dict[str, str] = {}
    for begin, end in _blocks(len(response.full), reach, pixels, 1 if exact else 4):
        # The first frames are the history; they were counted in the block before.
        block = response.between(begin + reach - 1, end, begin)
        if len(block.lists[1]):
            values = as_numbers(stimulus[begin:end].values.reshape(end - begin, pixels))
            able = possible(values, response.counts)
            if algorithm == "auto":
                names, why = order(task, able)
                names.append("float")  # whatever the stimulus turns out to hold
            else:
                names, why = [algorithm], "named by the caller"
                _check(algorithm, values, response)
            for name in names:
                if ALGORITHMS[name](values, block, first_lag, total, threads):
                    used.setdefault(name, why)
                    break
            else:
                raise UserError(
                    f"algorithm '{algorithm}' cannot serve a stimulus of "
                    + ("more than two values" if algorithm == "bits" else "values that are NaN")
                    + "; name 'float' or 'auto'"
                )
        progress(end, len(response.full), "spike-triggered average")
    return total.reshape(response.cells, lags, *shape), used


def _blocks(frames: int, reach: int, pixels: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of blocks that overlap by the history."""
    block = max(2 * reach, BLOCK_BYTES // (pixels * size))
    for begin in range(0, frames - reach + 1, block - reach + 1):
        yield begin, min(begin + block, frames)


def _check(algorithm: str, values: NDArray[Any], response: Response) -> None:
    if algorithm in ("bits", "int8") and not response.counts:
        raise UserError(
            f"algorithm '{algorithm}' takes counts, and the response holds other numbers "
            "(a mean over repeats, or a rate); name 'float' or 'auto'"
        )
    if algorithm == "int8" and values.dtype.itemsize != 1:
        raise UserError(
            f"algorithm 'int8' takes stimuli of 8 bits, and this one is {values.dtype}; "
            "name 'float' or 'auto'"
        )


def spike_triggered_ensemble(
    split: xr.Dataset, lags: int = 20, *, first_lag: int = 0, cell: Any = None
) -> xr.Dataset:
    """The stimuli before each response of one cell.

    Args:
        split: a split of a recording. Repeats are averaged first.
        lags, first_lag: as in `sta`.
        cell: its name; may be left out where there is one.

    Returns:
        `ensemble (event, lag, [channel,] y, x)` in the type of the stimulus, one event for each
        frame with a response, and `weight (event)`: its count or rate; `frame (event)`.

    Raises:
        RecordingError: if no segment is as long as the history.
        UserError: if there are several cells and none is named.
    """
    response = _of_one_cell(split, first_lag + lags, cell)
    frames, weight = response.events()
    stimulus = split["stimulus"]
    lag = np.arange(first_lag, first_lag + lags)
    shown, at = np.unique(frames[:, None] - lag, return_inverse=True)
    ensemble = stimulus[shown].values[at.reshape(len(frames), lags)]
    dims = ("event", "lag", *stimulus.dims[1:])
    coords: dict[str, Any] = lag_coordinate(lag, split.attrs["frame_interval"])
    coords |= {str(name): split[name].variable for name in dims if name in split.coords}
    return xr.Dataset(
        {"ensemble": (dims, ensemble), "weight": ("event", weight)},
        coords=coords | {"frame": ("event", frames)},
    )


def stc(
    split: xr.Dataset,
    lags: int = 20,
    *,
    first_lag: int = 0,
    cell: Any = None,
    prior: bool = False,
    project_out: bool = False,
    algorithm: str = "auto",
    threads: int = 1,
    progress: Progress = silent,
) -> xr.Dataset:
    """Spike-triggered covariance of one cell.

    C = Σ_t r[t] (s_t - a)(s_t - a)ᵀ / Σ_t r[t], where s_t is the stimulus of the history of frame t
    as one vector and a the spike-triggered average. The stimulus is read in blocks, so it may be
    larger than memory.

    Args:
        split: a split of a recording. Repeats are averaged first.
        lags, first_lag: as in `sta`.
        cell: its name; may be left out where there is one.
        prior: whether the covariance of all stimuli that could have been answered is subtracted.
        project_out: whether the direction of the average is removed from every stimulus.
        algorithm: "bits" counts the bits that two checks of a two-valued stimulus share before
            spikes, exactly; "product" multiplies any stimulus, in single precision within blocks.
            "auto" takes "bits" where it can serve.
        threads: of "bits"; the product follows the settings of SciPy's BLAS.
        progress: is told the events done.

    Returns:
        `stc (feature, feature_2)`, features being lag by [channel by] y by x in this order, with
        `sta (lag, [channel,] y, x)` and `spikes`. NaN where nothing was counted. The attribute
        `algorithm` says which were used, for the response and for the prior if they differ.

    Raises:
        RecordingError: if no segment is as long as the history.
        UserError: if there are several cells and none is named, if a response is negative, if the
            covariance is larger than the memory, or if the named algorithm cannot serve.
    """
    response = _of_one_cell(split, first_lag + lags, cell)
    stimulus = split["stimulus"]
    lag = np.arange(first_lag, first_lag + lags)
    features = lags * int(np.prod(stimulus.shape[1:]))
    require_memory(features)
    frames, weight = response.events()
    if (weight < 0).any():
        raise UserError("a covariance needs responses that are not negative; subtract their least")
    answered = Windows(stimulus, frames, weight, lag, threads, progress)
    covariance, mean, used = weighted_covariance(answered, algorithm)
    if prior:
        shown = np.flatnonzero(response.full)
        everything = replace(answered, frames=shown, weight=np.ones(len(shown)))
        before, _, also = weighted_covariance(everything, algorithm)
        covariance -= before
        used = used if also == used else f"{used}, {also}"
    if project_out:
        # With Q = 1 - a aᵀ / |a|², Q C Q, by two updates of rank 1.
        direction = mean / np.linalg.norm(mean)
        covariance -= np.outer(direction, direction @ covariance)
        covariance -= np.outer(covariance @ direction, direction)
    coords: dict[str, Any] = lag_coordinate(lag, split.attrs["frame_interval"])
    dims = ("lag", *(str(dim) for dim in stimulus.dims[1:]))
    coords |= {name: split[name].variable for name in dims if name in split.coords}
    return xr.Dataset(
        {
            "stc": (("feature", "feature_2"), covariance),
            "sta": (dims, mean.reshape(lags, *stimulus.shape[1:])),
            "spikes": ((), weight.sum() / response.repeats),
        },
        coords=coords,
        attrs={"algorithm": used},
    )


def _of_one_cell(split: xr.Dataset, reach: int, cell: Any) -> Response:
    if cell is None and split.sizes["cell"] != 1:
        names = ", ".join(str(name) for name in split["cell"].values[:5])
        raise UserError(f"there are {split.sizes['cell']} cells ({names}, ...); name one as 'cell'")
    one = split if cell is None else split.sel(cell=[cell])
    response = Response(one, reach)
    if not response.full.any():
        raise RecordingError(f"no segment is as long as {reach} frames of history; use fewer lags")
    return response
