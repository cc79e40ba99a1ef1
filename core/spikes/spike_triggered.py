"""Spike-triggered average, ensemble and covariance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.errors import RecordingError, UserError, nearest
from retinakit.contracts.frame_blocks import Reader, blocks
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import (
    SPIKES_PER_BIN,
    full_history,
    lag_coordinate,
    mean_response,
)
from retinakit.spikes.algorithms.choice import ALGORITHMS
from retinakit.spikes.algorithms.response import Response
from retinakit.spikes.algorithms.stimulus_sums import stimulus_sums
from retinakit.spikes.algorithms.window_covariance import (
    Windows,
    require_memory,
    weighted_covariance,
)
from retinakit.spikes.stimulus_covariance import stimulus_covariance


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
    history in their segment and a response. If a cell has a negative response, such as a z-scored
    calcium trace, the mean over these frames is first subtracted from its response, and the divisor
    is Σ_t |r[t, c]|: this is the covariance of stimulus and response over the mean absolute
    deviation of the response, or half the difference of the averages over the responses above and
    below the mean. It does not depend on the baseline and is of the order of the stimulus. Sums of
    8-bit stimuli and spike counts are exact. The
    stimulus is read in blocks, so it may be larger than memory. The blocks of a dask array are read
    and summed in parallel by the workers of the dask scheduler.

    Args:
        splits: a split of a recording, or several to average over. Repeats are averaged first.
        lags: the number of lags.
        first_lag: the smallest lag; 0 is the frame shown in the bin of the response.
        algorithm: "bits" is for two-valued stimuli and spike counts, "int8" for 8-bit stimuli and
            spike counts, "float" for any stimulus; these three use only frames with a response.
            "toeplitz" and "fft" are matrix products over all frames in single precision. "auto"
            selects the fastest by measured costs, among the exact ones if there are any.
        threads: the number of threads of "bits", "int8" and "float" (in each dask worker); the
            matrix products use the settings of NumPy's BLAS.
        progress: is called with the number of processed frames.

    Returns:
        `sta (cell, lag, [channel,] y, x)`, in the units of the stimulus, with the coordinate
        `lag_time` (s), NaN for a cell without responses; and `spikes (cell)`, the divisor, which is
        the number of spikes for spike counts; its attribute `units` is "spikes" for responses in
        spikes per bin, otherwise that of the response. The attributes `algorithm` and
        `algorithm_why` give the algorithm and the reason for its choice.

    Raises:
        RecordingError: if no segment is as long as the history.
        UserError: if the algorithm does not exist or does not support the stimulus or response.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> average = sta(train, lags=5)
        >>> dict(average["sta"].sizes)
        {'cell': 2, 'lag': 5, 'y': 8, 'x': 8}
        >>> bool((average["spikes"] == train["response"][4:1000].sum("frame")
        ...     + train["response"][1004:].sum("frame")).all())
        True
    """
    splits = [splits] if isinstance(splits, xr.Dataset) else list(splits)
    reach = first_lag + lags
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise UserError(
            f"there is no algorithm '{algorithm}'; {nearest(algorithm, ['auto', *ALGORITHMS])}"
        )
    responses = [Response(split, reach) for split in baseline_subtracted(splits, reach)]
    if not any(response.full.any() for response in responses):
        raise RecordingError(f"no segment is as long as {reach} frames of history; use fewer lags")
    total: Any = None
    used: dict[str, str] = {}
    done, whole = 0, sum(len(response.full) for response in responses)

    def tell(frames: int) -> None:
        progress(done + frames, whole, "spike-triggered average")

    for split, response in zip(splits, responses, strict=True):
        sums, how = stimulus_sums(
            split["stimulus"], response, lags, first_lag, algorithm, threads, tell
        )
        done += len(response.full)
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
    counted = str(first["response"].attrs.get("units", SPIKES_PER_BIN))
    if counted.startswith(SPIKES_PER_BIN):
        counted = "spikes"
    return xr.Dataset(
        {
            "sta": (dims, average, {"units": units}),
            "spikes": ("cell", spikes, {"units": counted}),
        },
        coords=coords,
        attrs={"algorithm": ", ".join(used), "algorithm_why": "; ".join(used.values())},
    )


def baseline_subtracted(splits: Sequence[xr.Dataset], reach: int) -> list[xr.Dataset]:
    """Splits whose responses of either sign have the mean 0; others are unchanged.

    The mean over the frames with a full history in any of the splits is subtracted from the
    response of each cell that has a negative value in these frames.

    Args:
        splits: of a recording. Repeats of a response that changes are averaged.
        reach: the length of the history in frames.

    Example:
        >>> from retinakit.contracts import make_split
        >>> trace = np.array([[-1.0, 1.0], [2.0, 1.0]])  # (frame, cell)
        >>> split = make_split(np.zeros((2, 1, 1)), trace, frame_interval=0.1, units="z-score")
        >>> baseline_subtracted([split], reach=1)[0]["response"].values.tolist()
        [[-1.5, 1.0], [1.5, 1.0]]
    """
    if all(split["response"].dtype.kind in "bu" for split in splits):
        return list(splits)
    used = [
        mean_response(split).isel(frame=full_history(split["segment"], reach)) for split in splits
    ]
    signed: Any = np.any([(response < 0).any("frame") for response in used], axis=0)
    if not signed.any():
        return list(splits)
    total = sum(response.sum("frame").astype(float).values for response in used)
    number: Any = sum(response.count("frame").values for response in used)
    baseline = np.where(signed, total / np.maximum(number, 1), 0)
    return [
        split.assign(response=mean_response(split).transpose("frame", "cell") - baseline)
        for split in splits
    ]


def spike_triggered_ensemble(
    split: xr.Dataset,
    lags: int = 20,
    *,
    first_lag: int = 0,
    cell: Any = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """The stimulus history of each response of one cell.

    The ensemble is held in memory; the stimulus is read in blocks.

    Args:
        split: a split of a recording. Repeats are averaged first.
        lags, first_lag: as for `sta`.
        cell: the name of the cell; it may be omitted if the split has one cell.
        progress: is called with the number of processed frames.

    Returns:
        `ensemble (event, lag, [channel,] y, x)`, with the dtype of the stimulus and one event for
        each frame with a nonzero response; `weight (event)`, the response; and `frame (event)`, the
        index of the frame.

    Raises:
        RecordingError: if no segment is as long as the history.
        UserError: if there are several cells and `cell` is not given.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> found = spike_triggered_ensemble(train, lags=5, cell=0)
        >>> found["ensemble"].dims
        ('event', 'lag', 'y', 'x')
    """
    response = _of_one_cell(split, first_lag + lags, cell)
    frames, weight = response.events()
    stimulus = split["stimulus"]
    lag = np.arange(first_lag, first_lag + lags)
    ensemble = np.empty((len(frames), lags, *stimulus.shape[1:]), stimulus.dtype)
    done, history = 0, first_lag + lags - 1
    read = Reader(stimulus, history)
    for part in blocks(stimulus, history):
        here = slice(done, int(np.searchsorted(frames, part.stop)))
        if here.stop > done:
            ensemble[here] = read[part][frames[here, None] - lag - part.start]
        done = here.stop
        progress(part.stop, len(stimulus), "spike-triggered ensemble")
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

    C = Σ_t r[t] (s_t - a)(s_t - a)ᵀ / Σ_t r[t], where s_t is the stimulus history of frame t as a
    vector and a the spike-triggered average. The stimulus is read in blocks, so it may be larger
    than memory.

    Args:
        split: a split of a recording. Repeats are averaged first.
        lags, first_lag: as for `sta`.
        cell: the name of the cell; it may be omitted if the split has one cell.
        prior: whether to subtract the covariance of the stimulus in all frames with a full history
            and a response; see `stimulus_covariance`.
        project_out: whether to remove the direction of the spike-triggered average from every
            stimulus.
        algorithm: "bits" is exact, for two-valued stimuli and spike counts; "product" is a matrix
            product in single precision within blocks, for any stimulus. "auto" selects "bits" if
            possible.
        threads: the number of threads of "bits"; the product uses the settings of SciPy's BLAS.
        progress: is called with the number of processed events.

    Returns:
        `stc (feature, feature_2)`, in squared units of the stimulus, where the features are lag,
        [channel,] y and x, flattened in this order; `sta (lag, [channel,] y, x)`; and `spikes`, the
        sum of the used responses. The first two are NaN if this is 0. The attribute `algorithm`
        names the algorithm.

    Raises:
        RecordingError: if no segment is as long as the history.
        UserError: if there are several cells and `cell` is not given, a response is negative, the
            covariance does not fit into memory, or the algorithm does not exist or does not support
            the stimulus or response.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording(size=4)["train"].to_dataset()
        >>> dict(stc(train, lags=3, cell=0, prior=True)["stc"].sizes)
        {'feature': 48, 'feature_2': 48}
    """
    response = _of_one_cell(split, first_lag + lags, cell)
    stimulus = split["stimulus"]
    lag = np.arange(first_lag, first_lag + lags)
    features = lags * int(np.prod(stimulus.shape[1:]))
    require_memory(features)
    frames, weight = response.events()
    if (weight < 0).any():
        raise UserError(
            "a spike-triggered covariance requires nonnegative responses; subtract their minimum"
        )
    answered = Windows(stimulus, frames, weight, lag, threads, progress)
    covariance, mean, used = weighted_covariance(answered, algorithm)
    if prior:
        recorded = np.isfinite(response.values[:, 0])
        whole = stimulus_covariance(split, lags, first_lag=first_lag, frames=recorded)
        covariance -= whole["covariance"].values
    if project_out:
        # Q C Q with Q = 1 - a aᵀ / |a|², by two updates of rank 1.
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
        raise UserError(
            f"there are {split.sizes['cell']} cells ({names}, ...); choose one with the argument "
            "'cell'"
        )
    one = split if cell is None else split.sel(cell=[cell])
    response = Response(one, reach)
    if not response.full.any():
        raise RecordingError(f"no segment is as long as {reach} frames of history; use fewer lags")
    return response
