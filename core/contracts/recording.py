"""The recording contract: stimulus and responses, with splits, as an xarray.DataTree.

A recording has the groups `train`, `validation` and `test`, and for simulated cells `truth` with
the true parameters. Each split is a Dataset with

- `stimulus (frame, [channel,] y, x)`: contrast, of any integer or float dtype, finite; y has the
  size 1 for bars, and y and x for a full field;
- `response ([repeat,] frame, cell)`: spikes per bin or a rate, with the attribute `units`; NaN
  where it was not recorded;
- `rate (frame, cell)`, optional: the expected number of spikes per bin, if it is known;
- `covariates (frame, covariate)`, optional: other measurements, such as pupil size, running speed
  and eye position, with the coordinates `covariate` (names) and `units (covariate)`;
- the coordinates `time` (s) and `segment` (integer) along `frame`, `cell`, and `y`, `x` (µm, if
  known);
- the attribute `frame_interval`, the time between frames in seconds.

The splits have the same cells, pixels, covariates, units and frame interval. They may differ in the
number of frames and repeats.

Lags: the dimension `lag` counts frames into the past, and lag 0 is the frame shown in the bin of
the response. A window of lags never crosses from one segment to another, and frames without a full
history are neither fitted nor scored.

Missing responses: a cell needs responses in `train`. In `validation` and `test` it may be NaN in
all frames; its scores are then NaN.

Trials: a trial, a clip or an image is a segment. A parameter that varies between trials, such as
contrast, speed or angle, is a coordinate along `frame` that is constant within a segment.

Tasks: a decision is a response with classes in place of cells. In the frame of the decision it is 1
for the chosen class and 0 for the others; it is NaN in all other frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from retinakit.contracts.errors import RecordingError, UserError, nearest
from retinakit.contracts.frame_blocks import blocks

SPLITS = ("train", "validation", "test")
STIMULUS_DIMS = (("frame", "y", "x"), ("frame", "channel", "y", "x"))
RESPONSE_DIMS = (("frame", "cell"), ("repeat", "frame", "cell"))
SPIKES_PER_BIN = "spikes per bin"
RARE_RATE = 5
"""Frame rate (Hz) from which spike counts are not all multiples of the frame rate by chance."""
FEW_SPIKES = 10
"""With fewer spikes in a split, the mean response of a cell is not compared between splits."""
SAMPLE = 100
"""Number of frames that are checked first, because they usually decide a check."""
RARE_RATIO = 10
"""Ratio of the mean responses of two splits that different stimuli do not explain."""
SPIKES_PER_SECOND = ("hz", "spikes/s", "spikes per second", "1/s")


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
    covariates: ArrayLike | None = None,
    covariate_names: Sequence[str] | None = None,
    covariate_units: Sequence[str] | None = None,
    trial: Mapping[str, ArrayLike] | None = None,
) -> xr.Dataset:
    """One split of a recording from its arrays.

    Args:
        stimulus: (frame, [channel,] y, x), an array or an xarray Variable; (frame, x) for bars and
            (frame,) for a full field, which get y and x of size 1.
        response: ([repeat,] frame, cell).
        frame_interval: seconds between frames.
        rate: (frame, cell), expected spikes per bin, where it is known.
        segment: (frame,) integers; by default all frames are one segment.
        time: (frame,) in seconds; by default from 0.
        cell, y, x: coordinates, y and x in µm; by default indices from 0, with the units "check"
            (of a checkerboard) for y and x.
        units: of the response.
        covariates: (frame, covariate).
        covariate_names, covariate_units: one for each covariate; by default numbers and "1".
        trial: the parameters of trials by name, each (frame,) and constant within a segment.

    Returns:
        The split, as described in `retinakit.contracts.recording`.

    Raises:
        RecordingError: if the shapes of the arrays do not agree.

    Example:
        >>> split = make_split(
        ...     np.zeros((6, 4, 4)),
        ...     np.zeros((6, 2)),
        ...     frame_interval=0.02,
        ...     segment=[0, 0, 0, 1, 1, 1],
        ...     covariates=np.zeros((6, 1)),
        ...     covariate_names=["pupil"],
        ...     covariate_units=["mm"],
        ...     trial={"contrast": [0.1, 0.1, 0.1, 0.8, 0.8, 0.8]},
        ... )
        >>> dict(split.sizes)
        {'frame': 6, 'y': 4, 'x': 4, 'cell': 2, 'covariate': 1}
    """
    response = np.asarray(response)
    if response.ndim not in (2, 3):
        raise RecordingError(
            f"'response' has {response.ndim} dimensions; give it as (frame, cell) or "
            "(repeat, frame, cell)"
        )
    if not isinstance(stimulus, xr.Variable):
        stimulus = with_space(stimulus)
    if stimulus.ndim not in (3, 4):
        raise RecordingError(
            f"'stimulus' has {stimulus.ndim} dimensions; give it as (frame, y, x), "
            "(frame, channel, y, x), (frame, x) for bars, or (frame) for a full field"
        )
    frames, cells = stimulus.shape[0], response.shape[-1]
    given = {"rate": rate, "segment": segment, "time": time, "covariates": covariates}
    lengths = {name: len(np.asarray(a)) for name, a in given.items() if a is not None}
    lengths |= {name: len(np.asarray(values)) for name, values in (trial or {}).items()}
    for name, length in {"response": response.shape[-2], **lengths}.items():
        if length != frames:
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
    if covariates is not None:
        split = _with_covariates(split, np.asarray(covariates), covariate_names, covariate_units)
    return _with_trials(split, trial or {})


def with_space(stimulus: Any, column: bool = False) -> Any:
    """A stimulus array with the dimensions y and x, of size 1 if they are missing.

    Args:
        stimulus: (frame,), (frame, x) or an array of more dimensions, which is not changed.
        column: whether the second dimension of (frame, x) is y.

    Returns:
        (frame, y, x).

    Example:
        >>> with_space(np.zeros((9, 24))).shape, with_space(np.zeros(9)).shape
        ((9, 1, 24), (9, 1, 1))
    """
    if stimulus.ndim == 1:
        return stimulus[:, None, None]
    if stimulus.ndim == 2:
        return stimulus[:, :, None] if column else stimulus[:, None, :]
    return stimulus


def _with_covariates(
    split: xr.Dataset,
    values: NDArray[Any],
    names: Sequence[str] | None,
    units: Sequence[str] | None,
) -> xr.Dataset:
    if values.ndim != 2:
        raise RecordingError(
            f"'covariates' has {values.ndim} dimensions; give it as (frame, covariate)"
        )
    count = values.shape[1]
    names = [str(number) for number in range(count)] if names is None else list(names)
    units = ["1"] * count if units is None else list(units)
    for what, given in (("names", names), ("units", units)):
        if len(given) != count:
            raise RecordingError(
                f"'covariates' has {count} columns (dimension 'covariate') and covariate_{what} "
                f"has {len(given)} entries; give one for each column"
            )
    return split.assign(covariates=(("frame", "covariate"), values)).assign_coords(
        covariate=("covariate", np.array(names)), units=("covariate", np.array(units))
    )


def _with_trials(split: xr.Dataset, parameters: Mapping[str, ArrayLike]) -> xr.Dataset:
    for name, given in parameters.items():
        values = np.asarray(given)
        if name in split.variables or name in split.dims:
            raise RecordingError(
                f"'{name}' is already a variable or dimension of the recording; choose another "
                "name for the trial parameter"
            )
        if any(len(np.unique(values[part])) > 1 for part in segments(split)):
            raise RecordingError(
                f"the trial parameter '{name}' changes within a segment (dimension 'frame'); give "
                "each trial a number in 'segment'"
            )
        split = split.assign_coords({name: ("frame", values)})
    return split


def make_recording(
    splits: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None
) -> xr.DataTree:
    """Makes a recording from its splits and validates it.

    Args:
        splits: `train`, `validation` and `test`, and perhaps `truth`, a Dataset each.
        attrs: attributes of the recording.

    Raises:
        RecordingError: if the recording violates the contract.

    Example:
        >>> split = make_split(np.zeros((9, 4, 4)), np.ones((9, 2)), frame_interval=0.02)
        >>> recording = make_recording({"train": split, "validation": split, "test": split})
        >>> recording["test"]["response"].dims
        ('frame', 'cell')
    """
    recording = xr.DataTree.from_dict(dict(splits))
    recording.attrs.update(attrs or {})
    validate(recording)
    return recording


def validate(recording: xr.DataTree) -> None:
    """Checks a recording against the contract. The stimulus is read in blocks of frames.

    Args:
        recording: see `retinakit.contracts.recording`.

    Raises:
        RecordingError: if the recording violates the contract. The message names the split, the
            variable, the dimension and the remedy.

    Example:
        >>> split = make_split(np.zeros((9, 4, 4)), np.ones((9, 2)), frame_interval=0.02)
        >>> validate(xr.DataTree.from_dict({"train": split, "validation": split}))
        Traceback (most recent call last):
        retinakit.contracts.errors.RecordingError: the recording has no split 'test'; ...
    """
    if not isinstance(recording, xr.DataTree):
        raise RecordingError(
            f"a recording is an xarray.DataTree with the splits {', '.join(SPLITS)} (got a "
            f"{type(recording).__name__}); make one with make_recording"
        )
    responses = {}
    for name in SPLITS:
        if name not in recording.children:
            raise RecordingError(
                f"the recording has no split '{name}'; it needs {', '.join(SPLITS)} "
                f"(has {', '.join(recording.children) or 'none'})"
            )
        split = recording[name].to_dataset()
        _validate_layout(name, split)
        _validate_stimulus(name, split)
        responses[name] = _Responses.of(split)
        _validate_response(name, split, responses[name])
    train = recording["train"].to_dataset()
    for name in SPLITS[1:]:
        split = recording[name].to_dataset()
        _compare(name, split, train)
        _compare_responses(name, responses[name], responses["train"], split)


def _compare(name: str, split: xr.Dataset, train: xr.Dataset) -> None:
    """Checks that a split has the cells, pixels, covariates and frame interval of `train`."""
    if not np.array_equal(split["cell"], train["cell"]):
        raise RecordingError(
            f"{name}: coordinate 'cell' differs from train's; give every split the same cells, "
            "with NaN in the 'response' where a cell was not recorded"
        )
    if split["stimulus"].shape[1:] != train["stimulus"].shape[1:]:
        raise RecordingError(
            f"{name}: 'stimulus' is {_sizes(split['stimulus'])} and train's is "
            f"{_sizes(train['stimulus'])}; crop every split to the same field"
        )
    interval, expected = split.attrs["frame_interval"], train.attrs["frame_interval"]
    if not same_interval(interval, expected):
        raise RecordingError(
            f"{name}: a frame lasts {interval:g} s (attribute 'frame_interval') and in train "
            f"{expected:g} s; use the same bins in both splits"
        )
    units, expected = (one["response"].attrs["units"] for one in (split, train))
    if units != expected:
        given = {units, expected}
        hertz = SPIKES_PER_BIN in given and any(str(u).lower() in SPIKES_PER_SECOND for u in given)
        remedy = f"; spikes per bin are spikes per second times {interval:g} s" if hertz else ""
        raise RecordingError(
            f"{name}: 'response' is in '{units}' and train's in '{expected}' (attribute 'units'); "
            f"convert one to the units of the other{remedy}"
        )
    covariates = [
        dict(zip(one["covariate"].values, one["units"].values, strict=True))
        if "covariates" in one
        else {}
        for one in (split, train)
    ]
    if list(covariates[0].items()) != list(covariates[1].items()):
        raise RecordingError(
            f"{name}: the covariates are {_list(covariates[0])} and train's are "
            f"{_list(covariates[1])} (dimension 'covariate'); give every split the same covariates "
            "in the same order"
        )


def _list(covariates: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in covariates.items()) or "none"


def _sizes(array: xr.DataArray) -> str:
    return " x ".join(f"{size} {dim}" for dim, size in list(array.sizes.items())[1:])


def _validate_layout(name: str, split: xr.Dataset) -> None:
    """Checks the variables, dimensions, coordinates and attributes of a split."""

    def wrong(message: str) -> RecordingError:
        return RecordingError(f"{name}: {message}")

    layout = {
        "stimulus": STIMULUS_DIMS,
        "response": RESPONSE_DIMS,
        "rate": (("frame", "cell"),),
        "covariates": (("frame", "covariate"),),
    }
    for variable, allowed in layout.items():
        if variable not in split.data_vars and variable not in ("stimulus", "response"):
            continue
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
    for dim in ("frame", "channel", "y", "x", "repeat", "cell"):
        if split.sizes.get(dim) == 0:
            raise wrong(f"dimension '{dim}' is empty; give at least one {dim}")
    for coordinate, kinds, what in (("time", "fiu", "seconds"), ("segment", "iu", "integers")):
        if coordinate not in split.coords or split[coordinate].dims != ("frame",):
            raise wrong(f"there is no coordinate '{coordinate}' along 'frame'; add it, in {what}")
        if split[coordinate].dtype.kind not in kinds:
            raise wrong(
                f"coordinate '{coordinate}' along 'frame' is of type {split[coordinate].dtype}; "
                f"give {what}"
            )
    for dim in ("cell", "covariate"):
        if dim not in split.dims:
            continue
        if dim not in split.coords:
            raise wrong(f"there is no coordinate '{dim}'; name the {dim}s")
        if not split.indexes[dim].is_unique:
            raise wrong(f"coordinate '{dim}' repeats a name; make the names of {dim}s unique")
    interval = split.attrs.get("frame_interval")
    if interval is None:
        raise wrong("attribute 'frame_interval' (seconds between frames) is missing; set it")
    if not (isinstance(interval, int | float | np.number) and 0 < interval < np.inf):
        raise wrong(f"attribute 'frame_interval' is {interval!r}; give the seconds between frames")
    if "units" not in split["response"].attrs:
        raise wrong("'response' has no attribute 'units'; set it, such as to 'spikes per bin'")
    if "covariates" in split:
        if "units" not in split.coords or split["units"].dims != ("covariate",):
            raise wrong("there is no coordinate 'units' along 'covariate'; add it, such as 'mm'")
        if not np.isfinite(split["covariates"]).all():
            raise wrong(
                "'covariates' are NaN or infinite in some frames (dimension 'frame'); interpolate "
                "them or leave those frames out"
            )
    time, segment = split["time"].values, split["segment"].values
    same = segment[1:] == segment[:-1]
    if not np.all(np.diff(time)[same] > 0):
        raise wrong("coordinate 'time' does not increase along 'frame' within a segment; sort it")
    if len(np.unique(segment)) != 1 + np.count_nonzero(~same):
        raise wrong("coordinate 'segment' is not contiguous along 'frame'; renumber the segments")


def _validate_stimulus(name: str, split: xr.Dataset) -> None:
    """Checks that the stimulus is finite."""
    stimulus = split["stimulus"]
    if stimulus.dtype.kind != "f":
        return
    for part in blocks(stimulus):
        finite = np.isfinite(stimulus[part].values)
        if not finite.all():
            frame = part.start + int(finite.reshape(len(finite), -1).all(1).argmin())
            raise RecordingError(
                f"{name}: 'stimulus' is NaN or infinite in frame {frame} (dimension 'frame'); "
                "interpolate it or leave such frames out"
            )


@dataclass(frozen=True)
class _Responses:
    """Statistics of the responses of a split, computed in one pass.

    Attributes:
        known: (cell,) the number of finite values.
        total: (cell,) the sum of the finite values.
        infinite: (cell,) whether any value is infinite.
        negative: whether any value is negative.
        in_hertz: whether all values are integer multiples of the frame rate, as spike counts
            converted to Hz are.
    """

    known: NDArray[np.int64]
    total: NDArray[np.float64]
    infinite: NDArray[np.bool_]
    negative: bool
    in_hertz: bool

    @classmethod
    def of(cls, split: xr.Dataset) -> Self:
        response = split["response"].transpose("frame", ..., "cell")
        interval, cells = split.attrs["frame_interval"], response.sizes["cell"]
        known, total = np.zeros(cells, np.int64), np.zeros(cells)
        infinite, negative, in_hertz = np.zeros(cells, bool), False, 1 / interval >= RARE_RATE
        for part in blocks(response, itemsize=8):
            values = response[part].values.reshape(-1, cells)
            finite = np.isfinite(values)
            if finite.all():
                known += len(values)
            else:
                infinite |= np.isinf(values).any(0)
                known += finite.sum(0)
                values = np.where(finite, values, 0)
            total += values.sum(0, dtype=float)
            negative |= bool(values.min(initial=0) < 0)
            in_hertz = in_hertz and all(
                _whole(np.multiply(values[some], interval, dtype=float))
                for some in (slice(SAMPLE), slice(SAMPLE, None))
            )
        return cls(known, total, infinite, negative, in_hertz and bool(total.any()))


def _whole(values: NDArray[np.float64]) -> bool:
    return bool((np.abs(values - np.rint(values)) < 1e-6).all())


def _validate_response(name: str, split: xr.Dataset, found: _Responses) -> None:
    def wrong(message: str) -> RecordingError:
        return RecordingError(f"{name}: 'response' {message}")

    cells = split["cell"].values
    for lost in cells[found.infinite]:
        raise wrong(
            f"of cell {lost} is infinite (dimension 'frame'); use NaN for missing responses"
        )
    if name == "train":
        for cell in cells[found.known == 0]:
            raise wrong(
                f"of cell {cell} is NaN in all frames, so the cell cannot be fitted; leave it out "
                "(dimension 'cell')"
            )
    if split["response"].attrs["units"] != SPIKES_PER_BIN:
        return
    if found.negative:
        raise wrong("in spikes per bin is negative; check the attribute 'units'")
    if found.in_hertz:
        rate = 1 / split.attrs["frame_interval"]
        raise wrong(
            f"has the units 'spikes per bin', but every value is a multiple of {rate:g}, the "
            f"number of frames per second, as for rates in Hz; divide it by {rate:g} or correct "
            "the attribute 'units'"
        )
    if name == "train":
        for cell in cells[(found.total == 0) & (found.known > 0)]:
            raise wrong(
                f"of cell {cell} has zero spikes, so the cell cannot be fitted; leave it out "
                "(dimension 'cell')"
            )


def _compare_responses(name: str, found: _Responses, train: _Responses, split: xr.Dataset) -> None:
    """Rejects spikes per second in one split and spikes per bin in the other."""
    if split["response"].attrs["units"] != SPIKES_PER_BIN:
        return
    both = (found.total >= FEW_SPIKES) & (train.total >= FEW_SPIKES)
    if not both.any():
        return
    means = [one.total[both] / one.known[both] for one in (found, train)]
    ratio = float(np.median(means[0] / means[1]))
    rate = 1 / split.attrs["frame_interval"]
    high, low, times = (name, "train", ratio) if ratio > 1 else ("train", name, 1 / ratio)
    if times >= RARE_RATIO and rate / 2 < times < rate * 2:
        raise RecordingError(
            f"{name}: the mean 'response' of {high} is {times:.3g} times that of {low}, as if it "
            f"were in Hz instead of spikes per bin; divide the response of {high} by {rate:g}, the "
            "number of frames per second"
        )


def full_history(segment: ArrayLike, lags: int) -> NDArray[np.bool_]:
    """The frames that have a full history of `lags` frames within their segment.

    Args:
        segment: (frame,) integers.
        lags: length of the history in frames, the frame itself included.

    Returns:
        (frame,) bool.

    Example:
        >>> full_history([0, 0, 0, 1, 1], lags=2).tolist()
        [False, True, True, False, True]
    """
    segment = np.asarray(segment)
    full = np.ones(len(segment), bool)
    for start in np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]][: len(segment)]):
        full[start : start + lags - 1] = False
    return full


def same_interval(first: float, second: float) -> bool:
    """Whether two frame intervals (s) agree to 1 %, the precision to which they are often given.

    Example:
        >>> same_interval(1 / 60, 0.01667), same_interval(1 / 60, 1 / 59)
        (True, False)
    """
    return bool(np.isclose(first, second, rtol=1e-2, atol=0))


def segments(split: xr.Dataset | xr.DataArray) -> list[slice]:
    """The slices of `frame` that are one segment each.

    Args:
        split: with the coordinate `segment`; without it, all frames are one segment.

    Example:
        >>> stimulus = xr.DataArray(np.zeros((5, 1, 1)), dims=("frame", "y", "x"))
        >>> segments(stimulus.assign_coords(segment=("frame", [0, 0, 1, 1, 1])))
        [slice(0, 2, None), slice(2, 5, None)]
    """
    if "segment" not in split.coords:
        return [slice(0, split.sizes["frame"])]
    segment = split["segment"].values
    starts = np.flatnonzero(np.r_[True, segment[1:] != segment[:-1]]).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(segment)], strict=True)]


def trial_parameter(split: xr.Dataset, name: str) -> xr.DataArray:
    """A parameter of the trials, such as contrast, speed or angle.

    Args:
        split: of a recording.
        name: of a coordinate along `frame` that is constant within each segment.

    Returns:
        (frame,).

    Raises:
        UserError: if there is no such coordinate, or it changes within a segment.

    Example:
        >>> split = make_split(
        ...     np.zeros((4, 1, 1)), np.zeros((4, 1)), frame_interval=0.02,
        ...     segment=[0, 0, 1, 1], trial={"contrast": [0.1, 0.1, 0.8, 0.8]},
        ... )
        >>> trial_parameter(split, "contrast").values.tolist()
        [0.1, 0.1, 0.8, 0.8]
    """
    known = [str(n) for n, c in split.coords.items() if c.dims == ("frame",) and n != "time"]
    if name not in known:
        raise UserError(
            f"the trials have no parameter '{name}' (a coordinate along the frames); "
            f"{nearest(name, known)}"
        )
    values = split[name].values
    starts = np.repeat([part.start for part in segments(split)], _lengths(split))
    first = values[starts]
    same = (values == first) | ((values != values) & (first != first))  # NaN agrees with NaN
    if not same.all():
        raise UserError(
            f"'{name}' changes within a segment, so it is no parameter of the trials; make each "
            "trial a segment"
        )
    return split[name]


def shown_frames(split: xr.Dataset) -> list[slice]:
    """The frames of each segment in which its stimulus is shown.

    They begin where `from_onset (frame)`, the time in s from the stimulus's onset, is 0, and last
    for `duration (frame)` in s. Without these coordinates they are the whole segment. Datasets of
    trials, such as `gratings`, show a grey screen before and after each stimulus.

    Args:
        split: of a recording.

    Example:
        >>> split = make_split(
        ...     np.zeros((6, 1, 1)), np.zeros((6, 1)), frame_interval=0.1,
        ...     segment=[0, 0, 0, 1, 1, 1], trial={"duration": [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]},
        ... )
        >>> onset = ("frame", [-0.1, 0.0, 0.1, -0.1, 0.0, 0.1])
        >>> shown_frames(split.assign_coords(from_onset=onset))
        [slice(1, 2, None), slice(4, 6, None)]
    """
    parts = segments(split)
    if "from_onset" not in split.coords:
        return parts
    half = 0.5 * split.attrs["frame_interval"]  # times are exact up to rounding errors
    onset, found = split["from_onset"].values, []
    for part in parts:
        shown = onset[part] > -half
        if "duration" in split.coords:
            shown &= onset[part] < split["duration"].values[part] - half
        first = part.start + int(shown.argmax())
        found.append(slice(first, first + int(shown.sum())))
    return found


def grouped(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The different values of a parameter of trials, and the index of each trial's value.

    Args:
        values: (trial,), numbers or text.

    Returns:
        The values, numbers in ascending order and text in the order in which it first appears, and
        the indices (trial,).

    Example:
        >>> [found.tolist() for found in grouped(np.array(["top", "bottom", "top"]))]
        [['top', 'bottom'], [0, 1, 0]]
    """
    found, first, index = np.unique(values, return_index=True, return_inverse=True)
    if values.dtype.kind in "iufb":
        return found, index
    order = np.argsort(first)
    return found[order], np.argsort(order)[index]


def trials_with(split: xr.Dataset, parameters: Mapping[str, float | str]) -> NDArray[np.bool_]:
    """The frames of the trials that have some parameters.

    Args:
        split: of a recording.
        parameters: their values by name, such as {"contrast": 0.8}; numbers agree to 1e-5.

    Returns:
        (frame,) bool.

    Raises:
        UserError: as `trial_parameter`.

    Example:
        >>> split = make_split(
        ...     np.zeros((4, 1, 1)), np.zeros((4, 1)), frame_interval=0.02,
        ...     segment=[0, 0, 1, 1], trial={"contrast": [0.1, 0.1, 0.8, 0.8]},
        ... )
        >>> trials_with(split, {"contrast": 0.8}).tolist()
        [False, False, True, True]
    """
    chosen = np.ones(split.sizes["frame"], bool)
    for name, wanted in parameters.items():
        values = trial_parameter(split, name).values
        numbers = values.dtype.kind in "iuf" and not isinstance(wanted, str)
        chosen &= np.isclose(values, wanted) if numbers else values == wanted
    return chosen


def _lengths(split: xr.Dataset) -> list[int]:
    return [part.stop - part.start for part in segments(split)]


def mean_response(split: xr.Dataset) -> xr.DataArray:
    """The response averaged over repeats.

    Args:
        split: of a recording.

    Returns:
        (frame, cell), in the units of the response; NaN where no repeat was recorded.

    Example:
        >>> response = np.array([[[1.0], [np.nan]], [[3.0], [4.0]]])  # (repeat, frame, cell)
        >>> split = make_split(np.zeros((2, 1, 1)), response, frame_interval=0.02)
        >>> mean_response(split).values.tolist()
        [[2.0], [4.0]]
    """
    return mean_over_repeats(split["response"])


def mean_over_repeats(values: xr.DataArray) -> xr.DataArray:
    """Responses or predictions averaged over repeats, if there are any.

    A model whose predictions depend on earlier spikes has one prediction for each repeat.

    Args:
        values: ([repeat,] frame, ...).

    Returns:
        (frame, ...), NaN where all repeats are NaN.

    Example:
        >>> prediction = xr.DataArray([[1.0, 2.0], [3.0, 2.0]], dims=("repeat", "frame"))
        >>> mean_over_repeats(prediction).values.tolist()
        [2.0, 2.0]
    """
    return values.mean("repeat", keep_attrs=True) if "repeat" in values.dims else values


CENTRED = 0.05
"""Responses whose mean is below this fraction of their standard deviation, some of them negative,
are centred on 0, as z-scores are."""


def require_uncentred(response: xr.DataArray) -> None:
    """Checks that no cell has responses centred on 0, which have no Poisson likelihood.

    Args:
        response: ([repeat,] frame, cell).

    Raises:
        RecordingError: if a cell has.

    Example:
        >>> require_uncentred(xr.DataArray([[0.0], [2.0]], {"cell": [7]}, ("frame", "cell")))
    """
    over = [dim for dim in response.dims if dim != "cell"]
    # Counts, which need no double precision, are the rule.
    response = response[{"cell": np.flatnonzero(response.min(over) < 0)}]
    mean, spread = response.mean(over, dtype=float), response.std(over, dtype=float)
    centred = mean <= CENTRED * spread
    for cell in response["cell"].values[centred.values][:1]:
        raise RecordingError(
            f"train: the responses of cell {cell} are centred on 0 (mean "
            f"{float(mean.sel(cell=cell)):.3g}), and a Poisson loss needs expected responses above "
            "0; set loss: mse, or do not subtract the mean from the response"
        )


def space_sizes(labelled: xr.Dataset | xr.DataArray) -> dict[str, int]:
    """The sizes of a frame: of `channel`, if there are channels, `y` and `x`.

    Args:
        labelled: with these dimensions.

    Example:
        >>> import xarray as xr
        >>> space_sizes(xr.Dataset(coords={"x": [0, 1, 2], "y": [0, 1], "cell": [5]}))
        {'y': 2, 'x': 3}
    """
    return {dim: labelled.sizes[dim] for dim in ("channel", "y", "x") if dim in labelled.sizes}


def as_response(split: xr.Dataset, target: str) -> xr.Dataset:
    """A split whose `response` is the target of a fit.

    Args:
        split: of a recording.
        target: "response", which returns the split unchanged, or "rate", which replaces the
            response by the expected spikes per bin.

    Raises:
        RecordingError: if the target is "rate" and the split has no `rate`.

    Example:
        >>> import numpy as np
        >>> split = make_split(
        ...     np.zeros((2, 1, 1)), np.ones((2, 1)), frame_interval=0.1, rate=np.full((2, 1), 0.5)
        ... )
        >>> as_response(split, "rate")["response"].values.ravel().tolist()
        [0.5, 0.5]
    """
    if target != "rate":
        return split
    if "rate" not in split:
        raise RecordingError(
            "target is 'rate' and the recording has no 'rate'; use target: response"
        )
    return split.assign(response=split["rate"])


def lag_coordinate(lags: Sequence[int] | NDArray[Any], frame_interval: float) -> dict[str, Any]:
    """The coordinates `lag` (frames) and `lag_time` (s), for the argument `coords` of xarray.

    Args:
        lags: in frames.
        frame_interval: in seconds.

    Example:
        >>> kernel = xr.DataArray([1.0, 0.5], lag_coordinate([0, 1], 0.02), ("lag",))
        >>> kernel["lag_time"].values.tolist()
        [0.0, 0.02]
    """
    lags = np.asarray(lags)
    return {
        "lag": ("lag", lags, {"units": "frame"}),
        "lag_time": ("lag", lags * frame_interval, {"units": "s"}),
    }
