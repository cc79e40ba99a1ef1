"""The recording contract: stimulus and responses, with splits, as an xarray.DataTree.

A recording has the groups `train`, `validation` and `test` (and `truth` where a simulator knows the
answer). Each split is a Dataset with

- `stimulus (frame, [channel,] y, x)`: contrast, of any integer or float dtype;
- `response ([repeat,] frame, cell)`: spikes per bin or a rate, as its attribute `units` says; NaN
  where it was not recorded;
- `rate (frame, cell)`: the expected spikes per bin, only where it is known;
- coordinates `time` (s) and `segment` (int) along `frame`, `cell`, and `y`, `x` (µm, where known).

Lags, everywhere: the dimension `lag` counts frames into the past, and 0 is the frame shown in the
response's own bin. A window of lags never crosses from one segment to another, and frames without
a full history are neither fitted nor scored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from retinakit.contracts.errors import RecordingError
from retinakit.contracts.frame_blocks import blocks

SPLITS = ("train", "validation", "test")
STIMULUS_DIMS = (("frame", "y", "x"), ("frame", "channel", "y", "x"))
RESPONSE_DIMS = (("frame", "cell"), ("repeat", "frame", "cell"))
SPIKES_PER_BIN = "spikes per bin"


def make_split(
    stimulus: Any,
    response: ArrayLike,
    *,
    frame_interval: float,
    rate: ArrayLike | None = None,
    segment: ArrayLike | None = None,
    time: ArrayLike | None = None,
    cell: ArrayLike | None = None,
    y: ArrayLike | None = None,
    x: ArrayLike | None = None,
    units: str = SPIKES_PER_BIN,
) -> xr.Dataset:
    """One split of a recording from its arrays.

    Args:
        stimulus: (frame, [channel,] y, x), an array or an xarray Variable.
        response: ([repeat,] frame, cell).
        frame_interval: seconds between frames.
        rate: (frame, cell), expected spikes per bin, where it is known.
        segment: (frame,) integers; all frames are one segment by default.
        time: (frame,) seconds; counted from 0 by default.
        cell, y, x: coordinates; counted from 0 by default, y and x then in checks.
        units: of the response.

    Raises:
        RecordingError: if the arrays do not fit together.
    """
    response = np.asarray(response)
    if response.ndim not in (2, 3):
        raise RecordingError(
            f"'response' has {response.ndim} dimensions; give it as (frame, cell) or "
            "(repeat, frame, cell)"
        )
    if stimulus.ndim not in (3, 4):
        raise RecordingError(
            f"'stimulus' has {stimulus.ndim} dimensions; give it as (frame, y, x) or "
            "(frame, channel, y, x)"
        )
    frames, cells = stimulus.shape[0], response.shape[-1]
    for name, length in (("response", response.shape[-2]), ("rate", _length(rate))):
        if length is not None and length != frames:
            raise RecordingError(
                f"'{name}' has {length} frames and 'stimulus' has {frames} (dimension 'frame'); "
                "cut them to the same frames, one bin of the response for each frame shown"
            )
    stimulus_dims = STIMULUS_DIMS[stimulus.ndim - 3]
    variables: dict[str, Any] = {
        "stimulus": xr.Variable(stimulus_dims, stimulus)
        if not isinstance(stimulus, xr.Variable)
        else stimulus,
        "response": (RESPONSE_DIMS[response.ndim - 2], response, {"units": units}),
    }
    if rate is not None:
        variables["rate"] = (("frame", "cell"), np.asarray(rate), {"units": SPIKES_PER_BIN})
    height, width = stimulus.shape[-2:]
    if segment is None:
        segment = np.zeros(frames, np.int32)
    if time is None:
        time = np.arange(frames) * frame_interval
    space: dict[str, str] = {"units": "check"} if y is None else {"units": "µm"}
    split = xr.Dataset(
        variables,
        coords={
            "time": ("frame", np.asarray(time, float), {"units": "s"}),
            "segment": ("frame", np.asarray(segment)),
            "cell": ("cell", np.arange(cells) if cell is None else np.asarray(cell)),
            "y": ("y", np.arange(height, dtype=float) if y is None else np.asarray(y), space),
            "x": ("x", np.arange(width, dtype=float) if x is None else np.asarray(x), space),
        },
        attrs={"frame_interval": float(frame_interval)},
    )
    split["stimulus"].attrs.setdefault("units", "contrast")
    return split


def _length(array: ArrayLike | None) -> int | None:
    return None if array is None else len(np.asarray(array))


def make_recording(
    splits: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None
) -> xr.DataTree:
    """A recording from its splits (and `truth`), validated.

    Raises:
        RecordingError: if it breaks the contract.
    """
    recording = xr.DataTree.from_dict(dict(splits))
    recording.attrs.update(attrs or {})
    validate(recording)
    return recording


def validate(recording: xr.DataTree) -> None:
    """Checks a recording against the contract.

    Raises:
        RecordingError: naming the split, the variable, the dimension and what to do.
    """
    for name in SPLITS:
        if name not in recording.children:
            raise RecordingError(
                f"the recording has no split '{name}'; it needs {', '.join(SPLITS)} "
                f"(has {', '.join(recording.children) or 'none'})"
            )
        _validate_split(name, recording[name].to_dataset())
    first = recording["train"].to_dataset()
    for name in SPLITS[1:]:
        split = recording[name].to_dataset()
        if not np.array_equal(split["cell"], first["cell"]):
            raise RecordingError(
                f"{name}: coordinate 'cell' differs from train's; give every split the same cells"
            )
        if split["stimulus"].shape[1:] != first["stimulus"].shape[1:]:
            raise RecordingError(
                f"{name}: 'stimulus' is {_sizes(split['stimulus'])} and train's is "
                f"{_sizes(first['stimulus'])}; crop every split to the same field"
            )


def _sizes(array: xr.DataArray) -> str:
    return " x ".join(f"{size} {dim}" for dim, size in list(array.sizes.items())[1:])


def _validate_split(name: str, split: xr.Dataset) -> None:
    def wrong(message: str) -> RecordingError:
        return RecordingError(f"{name}: {message}")

    for variable, allowed in (("stimulus", STIMULUS_DIMS), ("response", RESPONSE_DIMS)):
        if variable not in split:
            raise wrong(f"there is no variable '{variable}'; it is needed in every split")
        dims = tuple(str(dim) for dim in split[variable].dims)
        if dims not in allowed:
            expected = " or ".join(f"({', '.join(option)})" for option in allowed)
            raise wrong(
                f"'{variable}' has dimensions ({', '.join(dims)}); "
                f"transpose or rename to {expected}"
            )
        if split[variable].dtype.kind not in "biuf":
            raise wrong(f"'{variable}' is of type {split[variable].dtype}; convert it to numbers")
    for dim in ("frame", "y", "x", "cell"):
        if split.sizes[dim] == 0:
            raise wrong(f"dimension '{dim}' is empty; give at least one {dim}")
    for coordinate, kinds in (("time", "fiu"), ("segment", "iu")):
        if coordinate not in split.coords or split[coordinate].dims != ("frame",):
            raise wrong(f"there is no coordinate '{coordinate}' along 'frame'; add it")
        if split[coordinate].dtype.kind not in kinds:
            raise wrong(f"coordinate '{coordinate}' is of type {split[coordinate].dtype}")
    if "cell" not in split.coords:
        raise wrong("there is no coordinate 'cell'; name the cells")
    if not split.indexes["cell"].is_unique:
        raise wrong("coordinate 'cell' repeats a name; make the names of cells unique")
    if "frame_interval" not in split.attrs:
        raise wrong("attribute 'frame_interval' (seconds between frames) is missing; set it")
    if "units" not in split["response"].attrs:
        raise wrong("'response' has no attribute 'units'; say 'spikes per bin' or what it is")
    if "rate" in split and split["rate"].dims != ("frame", "cell"):
        raise wrong("'rate' must have dimensions (frame, cell)")
    time, segment = split["time"].values, split["segment"].values
    same = segment[1:] == segment[:-1]
    if not np.all(np.diff(time)[same] > 0):
        raise wrong("coordinate 'time' does not increase along 'frame' within a segment; sort it")
    if len(np.unique(segment)) != 1 + np.count_nonzero(~same):
        raise wrong("coordinate 'segment' is not contiguous along 'frame'; renumber the segments")
    if split["stimulus"].dtype.kind == "f":
        for part in blocks(split["stimulus"]):
            finite = np.isfinite(split["stimulus"][part].values)
            if not finite.all():
                frame = part.start + int(finite.reshape(len(finite), -1).all(1).argmin())
                raise wrong(
                    f"'stimulus' is NaN or infinite in frame {frame} (dimension 'frame'); fill it "
                    "or leave those frames out"
                )
    response = split["response"].values
    if response.dtype.kind == "f":
        missing = np.isnan(response)
        for cell, lost in zip(
            split["cell"].values, missing.all(axis=tuple(range(response.ndim - 1))), strict=True
        ):
            if lost:
                raise wrong(f"'response' of cell {cell} is all NaN; leave that cell out")
        response = np.where(missing, 0, response)
        if not np.isfinite(response).all():
            raise wrong("'response' holds infinite values; write NaN where it was not recorded")
    if split["response"].attrs["units"] == SPIKES_PER_BIN:
        if response.min() < 0:
            raise wrong("'response' in spikes per bin is negative; check the units")
        if name == "train":
            total = response.sum(axis=tuple(range(response.ndim - 1)), dtype=float)
            for cell, count in zip(split["cell"].values, total, strict=True):
                if count == 0:
                    raise wrong(
                        f"'response' of cell {cell} has zero spikes, so nothing can be fitted; "
                        "leave that cell out"
                    )


def full_history(segment: ArrayLike, lags: int) -> NDArray[np.bool_]:
    """Which frames have `lags` frames (their own included) within their own segment.

    Args:
        segment: (frame,) integers.
        lags: length of the history in frames.

    Returns:
        (frame,) booleans.
    """
    segment = np.asarray(segment)
    full = np.ones(len(segment), bool)
    for start in np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]][: len(segment)]):
        full[start : start + lags - 1] = False
    return full


def same_interval(first: float, second: float) -> bool:
    """Whether two frame intervals (s) are the same but for how exactly they were measured."""
    return bool(np.isclose(first, second, rtol=1e-2, atol=0))


def segments(split: xr.Dataset | xr.DataArray) -> list[slice]:
    """The slices of `frame` that are one segment each; the whole where there are no segments."""
    if "segment" not in split.coords:
        return [slice(0, split.sizes["frame"])]
    segment = split["segment"].values
    starts = np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]]).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(segment)], strict=True)]


def mean_response(split: xr.Dataset) -> xr.DataArray:
    """The response averaged over repeats, (frame, cell)."""
    response = split["response"]
    return response.mean("repeat", keep_attrs=True) if "repeat" in response.dims else response


def lag_coordinate(lags: Sequence[int] | NDArray[Any], frame_interval: float) -> dict[str, Any]:
    """The coordinates `lag` (frames) and `lag_time` (s), ready for `coords=`."""
    lags = np.asarray(lags)
    return {
        "lag": ("lag", lags, {"units": "frame"}),
        "lag_time": ("lag", lags * frame_interval, {"units": "s"}),
    }
