"""Tuning to a parameter of the trials, such as direction, orientation, speed and size."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    Progress,
    UserError,
    cases,
    grouped,
    groups,
    mean_over_repeats,
    mean_response,
    points,
    segments,
    shown_frames,
    silent,
    trial_parameter,
    trials_with,
)
from retinakit.report import number_axis
from retinakit.scores import is_task, prediction_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 1024
"""Frames of whole trials that are computed together, if a trial is not longer."""

CASES = 4
"""Largest number of models and points of sweeps that are drawn."""

PERIODS = {"direction": 360.0, "orientation": 180.0}


class TuningConfig(Config):
    """Options of the parameter and of the measure of the response."""

    parameter: str = Field(
        "direction",
        description="Parameter of the trials: a coordinate along the frames that is constant in a "
        "segment, such as direction, orientation, speed, spatial_frequency or radius.",
    )
    kind: Literal["auto", "direction", "orientation", "linear"] = Field(
        "auto",
        description="'direction': an angle with a period of 360 degrees; 'orientation': of 180 "
        "degrees; 'linear': not an angle; 'auto': by the name of the parameter.",
    )
    layer: str | None = Field(
        None, description="Layer whose units are examined; by default the cells (predictions)."
    )
    response: Literal["mean", "peak", "f1"] = Field(
        "mean",
        description="Measure of the response in a trial: its mean or its maximum over frames, or "
        "the amplitude at the frequency of the stimulus, the coordinate temporal_frequency (Hz).",
    )
    start: int = Field(
        0,
        ge=0,
        description="First frame of a trial that is used, counted from the onset of its stimulus "
        "where that is known; frames without a full history never are.",
    )
    stop: int | None = Field(
        None,
        ge=1,
        description="Frame of a trial before which the used frames end, counted in the same way; "
        "null: the end of its stimulus.",
    )
    position: Literal["mean", "centre"] = Field(
        "mean", description="Positions of a unit's map: the mean over all, or the central one."
    )
    split_by: str | None = Field(
        None, description="Another parameter, such as contrast, with a curve for each value."
    )
    select: dict[str, float | str] = Field(
        {}, description="Only the trials with these parameters, such as {contrast: 1}."
    )
    split: Literal["train", "validation", "test"] = Field("test", description="The split.")
    shown: int = Field(12, ge=1, description="Largest number of cells or units that are drawn.")

    @model_validator(mode="after")
    def _consistent(self) -> "TuningConfig":
        if self.split_by == self.parameter:
            raise ValueError("'split_by' and 'parameter' are the same; leave out 'split_by'")
        return self


class Tuning(Analysis):
    """Mean response of each cell or unit against a parameter of the trials, and its preference.

    The response in a trial is the mean over frames, the peak, or F1 = 2 |Σ_t r_t e^(-2πift)| / n,
    where f is the temporal frequency and the n frames are the last whole cycles. The grey screen
    before and after a stimulus is left out, see `retinakit.contracts.shown_frames`. A point is the
    mean over trials. For a layer, responses are measured at each position of a unit's map and then
    averaged over positions.

    Indices of direction θ with responses R (Mazurek et al. 2014), from directions at equal steps:

    - `direction_index` = |Σ R e^(iθ)| / Σ R, and `preferred_direction`, the angle of that sum;
    - `dsi` = (R(p) - R(p + 180)) / (R(p) + R(p + 180)), where p has the largest response;
    - `orientation_index` = |Σ R e^(2iθ)| / Σ R, of four directions or more, or of orientations;
    - `osi` = (R(p) - R(p + 90)) / (R(p) + R(p + 90)) of orientations; of directions, R is before
      that averaged over opposite directions.

    Orientations also have `preferred_orientation`, half the angle of Σ R e^(2iθ). For parameters
    that are not angles, `preferred` is the value with the largest response. R is 0 where a response
    is negative. A unit whose responses are negative, such as an inhibitory one, has R of the
    opposite sign, and `sign` is -1. Spontaneous activity is not subtracted.

    The result has `mean`, `error` (the standard error over trials) and, for cells, `recorded`
    (UNIT, [SPLIT_BY,] PARAMETER), the number of `trials ([SPLIT_BY,] PARAMETER)`, and the indices
    (UNIT, [SPLIT_BY]). UNIT is `cell` or the dimension of the layer.

    Raises:
        UserError: if the trials have no such parameter or none of them can be used, or the model
            has no such layer.

    Example:
        >>> from retinakit.contracts import make_recording, make_split
        >>> from retinakit.testing import SmallModel
        >>> stimulus = np.random.default_rng(0).choice([-1.0, 1.0], (120, 4, 4))
        >>> trial = np.repeat(np.arange(12), 10)
        >>> split = make_split(
        ...     stimulus, np.ones((120, 2)), frame_interval=0.02, segment=trial,
        ...     trial={"direction": trial % 4 * 90.0},
        ... )
        >>> recording = make_recording(dict.fromkeys(("train", "validation", "test"), split))
        >>> model = SmallModel()
        >>> _ = model.fit(recording)
        >>> result = Tuning.with_options(parameter="direction").run(model, recording)
        >>> result["mean"].dims, result["trials"].values.tolist()
        (('cell', 'direction'), [3, 3, 3, 3])
    """

    Config = TuningConfig
    quick: ClassVar[dict[str, Any]] = {"parameter": "segment"}

    @property
    def _kind(self) -> str:
        c = self.config
        if c.kind != "auto":
            return str(c.kind)
        return c.parameter if c.parameter in PERIODS else "linear"

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        split = data[c.split].to_dataset()
        if c.layer is not None:
            model.check_layer(c.layer)
        windows = self._windows(split, model.lags)
        trials = self._trials(split, windows, model.lags)
        unit = "cell" if c.layer is None else model.layers()[c.layer]
        cells = c.layer is None and not is_task(split["response"])
        measured, recorded = [], []
        for block in _blocks(trials):
            shown = split.isel(frame=slice(block[0].start, block[-1].stop))
            if c.layer is None:
                traces = mean_over_repeats(model.predict(shown)).transpose("frame", "cell")
            else:
                traces = model.activity(shown, c.layer).transpose("frame", unit, ...)
            measured += self._measured(traces, block, split, windows)
            if cells:
                recorded += self._measured(mean_response(shown), block, split, windows)
            progress(len(measured), len(trials))
        starts = np.array([trial.start for trial in trials])
        result = self._averaged(np.stack(measured), starts, split, unit)
        if cells:
            result["recorded"] = self._averaged(np.stack(recorded), starts, split, unit)["mean"]
        of_unit = split["cell"].variable if unit == "cell" else np.arange(result.sizes[unit])
        result = result.assign_coords({unit: of_unit})
        if c.layer is None:
            result["mean"].attrs["units"] = prediction_units(split["response"])
        return result.assign(self._indices(result["mean"], unit))

    def _trials(self, split: xr.Dataset, windows: dict[int, range], lags: int) -> list[slice]:
        """The frames of the trials that are used."""
        c = self.config
        used = trials_with(split, c.select) & trial_parameter(split, c.parameter).notnull().values
        if c.split_by is not None:
            used &= trial_parameter(split, c.split_by).notnull().values
        trials = [
            part for part in segments(split) if used[part.start] and len(windows[part.start]) > 0
        ]
        if not trials:
            chosen_text = ", ".join(f"{name} {value}" for name, value in c.select.items())
            raise UserError(
                f"no trial with {chosen_text or 'a ' + c.parameter} has frames with a full history "
                f"of {lags} frames from frame {c.start} on; select other trials or frames"
            )
        return trials

    def _windows(self, split: xr.Dataset, lags: int) -> dict[int, range]:
        """The used frames of each trial, as numbers from its start, by its first frame."""
        c, found = self.config, {}
        for part, shown in zip(segments(split), shown_frames(split), strict=True):
            onset = shown.start - part.start
            end = shown.stop - part.start
            if c.stop is not None:
                end = min(onset + c.stop, part.stop - part.start)
            found[part.start] = range(max(onset + c.start, lags - 1), end)
        return found

    def _measured(
        self,
        traces: xr.DataArray,
        block: list[slice],
        split: xr.Dataset,
        windows: dict[int, range],
    ) -> list[NDArray[Any]]:
        """The measure (unit) of each trial of a block, from its traces (frame, unit, ...)."""
        c, interval, found = self.config, split.attrs["frame_interval"], []
        for trial in block:
            window = windows[trial.start]
            first = trial.start - block[0].start
            values = traces.values[first + window.start : first + window.stop].astype(float)
            if c.response == "f1":
                frequency = trial_parameter(split, "temporal_frequency").values[trial.start]
                measure = _amplitude(values, float(frequency) * interval)
            elif c.response == "peak":
                measure = values.max(0)  # NaN if a response is missing
            else:
                measure = values.mean(0)
            places = measure.reshape(len(measure), -1)
            if c.position == "centre" and measure.ndim > 1:
                centre = [(size - 1) // 2 for size in measure.shape[1:]]
                places = measure[(slice(None), *centre)][:, None]
            found.append(places.mean(1))
        return found

    def _averaged(
        self, each: NDArray[Any], starts: NDArray[Any], split: xr.Dataset, unit: str
    ) -> xr.Dataset:
        """Mean and standard error over trials of measures (trial, unit)."""
        c = self.config
        coords: dict[str, Any] = {}
        place = []
        for name in filter(None, (c.split_by, c.parameter)):
            given = trial_parameter(split, name)
            labels, group = grouped(given.values[starts])
            attrs = {k: v for k, v in given.attrs.items() if k in ("units", "long_name")}
            coords[name] = (name, labels, attrs)
            place.append(group)
        shape = tuple(len(labels) for _, labels, _ in coords.values())
        known = ~np.isnan(each)

        def summed(values: NDArray[Any]) -> NDArray[Any]:
            total = np.zeros((*shape, each.shape[1]))
            np.add.at(total, tuple(place), np.where(known, values, 0))
            return total

        number = summed(np.ones_like(each))
        mean = np.divide(summed(each), number, out=np.full(number.shape, np.nan), where=number > 0)
        squares = summed((each - mean[tuple(place)]) ** 2)
        several = number > 1
        error = np.full(number.shape, np.nan)
        error[several] = np.sqrt(squares / (number - several) / number)[several]
        dims = (*coords, unit)
        trials = np.zeros(shape, int)
        np.add.at(trials, tuple(place), 1)
        result = xr.Dataset({"mean": (dims, mean), "error": (dims, error)}, coords)
        result = result.transpose(unit, ...).assign(trials=(tuple(coords), trials))
        result["mean"].attrs["long_name"] = LABELS[c.response]
        return result

    def _indices(self, mean: xr.DataArray, unit: str) -> dict[str, xr.DataArray]:
        """The preferences and the indices of tuning curves."""
        over = self.config.parameter
        others = [dim for dim in mean.dims if dim not in (unit, over)]
        sign = xr.where(mean.max([*others, over]) + mean.min([*others, over]) < 0, -1, 1)
        response = (sign * mean).clip(0).transpose(..., over)
        found = {"sign": sign}
        x = mean[over].values
        if self._kind == "linear":
            if x.dtype.kind in "iuf":
                known = response.notnull().all(over)
                found["preferred"] = response.fillna(0).idxmax(over).where(known)
            return found
        if x.dtype.kind not in "iuf":
            raise UserError(f"'{over}' has no numbers and is no angle; set kind: linear")
        period = PERIODS[self._kind]
        angles = np.deg2rad(x * (360 / period))
        if not _even(x, period):
            text = f"{over}s are not at equal steps of {period:g} degrees: no indices of tuning"
            return found | {"warning": xr.DataArray(text)}
        total = response.sum(over, skipna=False)
        total = total.where(total > 0)
        vector = (response * xr.DataArray(np.exp(1j * angles), dims=over)).sum(over, skipna=False)
        preferred = np.rad2deg(np.arctan2(vector.imag, vector.real)) * (period / 360) % period
        preferred = preferred.where(total.notnull())
        preferred.attrs["units"] = "degree"
        opposite = _against_opposite(response, over, period)
        if self._kind == "orientation":
            found |= {"orientation_index": abs(vector) / total, "osi": opposite}
            return found | {"preferred_orientation": preferred}
        found |= {"direction_index": abs(vector) / total, "dsi": opposite}
        found["preferred_direction"] = preferred
        if len(x) >= 4:
            twice = xr.DataArray(np.exp(2j * angles), dims=over)
            folded = (response + _turned(response, over, 180)) / 2
            found["orientation_index"] = abs((response * twice).sum(over, skipna=False)) / total
            found["osi"] = _against_opposite(folded, over, 180)
        return found

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        c = self.config
        shown = [(label, self._with_units(case)) for label, case in islice(cases(result), CASES)]
        polar = self._kind != "linear"
        sizes = [min(c.shown, _units(case)) for _, case in shown]
        columns = min(4, max(sizes))
        lines = [-(-size // columns) for size in sizes]
        side = 2.5 if polar else 2.3
        figure = Figure(
            figsize=(max(2.7 * columns, 4.0), side * sum(lines) + 0.3 * len(shown)),
            layout="constrained",
        )
        parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=lines)[:, 0]
        projection = {"projection": "polar"} if polar else {}
        for part, (label, case), rows in zip(parts, shown, lines, strict=True):
            axes = part.subplots(rows, columns, squeeze=False, subplot_kw=projection).ravel()
            name = str(case["mean"].dims[0])
            there = np.flatnonzero(case["mean"].notnull().any(case["mean"].dims[1:]).values)
            for axis in axes[min(len(there), c.shown) :]:
                axis.set_axis_off()
            for axis, index in zip(axes, there, strict=False):
                unit = case.isel({name: index})
                draw = self._draw_polar if polar else self._draw_curve
                draw(axis, unit)
                axis.set_title(f"{name} {unit[name].item()}{self._number(unit)}", fontsize=9)
            if not polar:
                axes[0].set_ylabel(_measure(c.response, case), fontsize=8)
            if len(shown) > 1:
                part.suptitle(label.replace("\n", ", "), fontsize=10)
            if c.split_by is not None:
                handles, labels = axes[0].get_legend_handles_labels()
                part.legend(
                    handles, labels, title=c.split_by, frameon=False, loc="outside right upper"
                )
        return figure

    def _with_units(self, case: xr.Dataset) -> xr.Dataset:
        """A case whose first dimension is that of the units, also if it is one cell of a sweep."""
        alone = set(case["mean"].dims) <= {self.config.parameter, self.config.split_by}
        return case.expand_dims("cell") if alone else case

    def _number(self, unit: xr.Dataset) -> str:
        """The index in the title of a panel."""
        name, label = {
            "direction": ("dsi", "DSI"), "orientation": ("osi", "OSI"), "linear": ("", ""),
        }[self._kind]  # fmt: skip
        if name not in unit or unit[name].ndim or not np.isfinite(unit[name]):
            return ""
        return f", {label} {float(unit[name]):.2f}"

    def _curves(self, unit: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
        """The curves of a unit with their labels."""
        by = self.config.split_by
        if by is None:
            return [("", unit)]
        return [(str(value), unit.sel({by: value})) for value in unit[by].values]

    def _draw_polar(self, axis: Any, unit: xr.Dataset) -> None:
        from matplotlib.ticker import MaxNLocator

        over = self.config.parameter
        x = unit[over].values.astype(float)
        for index, (label, curve) in enumerate(self._curves(unit)):
            sign = float(curve["sign"])
            angles, values = x, (sign * curve["mean"].values).clip(0)
            if self._kind == "orientation":  # an orientation is two opposite angles
                angles, values = np.r_[x, x + 180], np.r_[values, values]
            angles, values = np.r_[angles, angles[:1] + 360], np.r_[values, values[:1]]
            axis.plot(
                np.deg2rad(angles), values, "o-", ms=3, lw=1.2, color=f"C{index}", label=label
            )
            if "preferred_direction" in curve and np.isfinite(curve["preferred_direction"]):
                length = float(curve["direction_index"]) * np.nanmax(values)
                angle = np.deg2rad(float(curve["preferred_direction"]))
                axis.plot([angle, angle], [0, length], color=f"C{index}", lw=2)
            if "recorded" in curve and self._kind == "direction":
                seen = curve["recorded"].values.clip(0)
                axis.plot(np.deg2rad(np.r_[x, x[:1]]), np.r_[seen, seen[:1]], color="0.6", lw=0.9)
        axis.tick_params(labelsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.set_rlabel_position(22.5)

    def _draw_curve(self, axis: Any, unit: xr.Dataset) -> None:
        over = self.config.parameter
        values = unit[over].values
        text = values.dtype.kind not in "iuf"
        x = np.arange(len(values)) if text else values
        for index, (label, curve) in enumerate(self._curves(unit)):
            known = curve["mean"].notnull().values
            error = np.nan_to_num(curve["error"].values[known])
            axis.errorbar(
                x[known], curve["mean"].values[known], error, fmt="o-", ms=3, lw=1.2, capsize=2,
                color=f"C{index}", label=label,
            )  # fmt: skip
            if "recorded" in curve:
                axis.plot(x, curve["recorded"], color="0.6", lw=0.9, zorder=0)
        if text:
            axis.set_xticks(x, values)
        else:
            number_axis(axis, over, values)
        units = unit[over].attrs.get("units", "")
        axis.set_xlabel(f"{over} ({units})" if units not in ("", "1") else over, fontsize=8)
        axis.tick_params(labelsize=7)

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        what = "cells" if c.layer is None else f"units of {c.layer}"
        lines = {
            "direction": " The straight line points in the preferred direction, and its length is "
            "the direction index relative to the largest response.",
            "orientation": " Each orientation is drawn at both of its angles.",
            "linear": " Error bars are standard errors over trials.",
        }[self._kind]
        recorded = any("recorded" in group for group in groups(result).values())
        drawn = recorded and self._kind != "orientation"
        measure = _measure(c.response, next(iter(groups(result).values())))
        return (
            f"{measure[:1].upper()}{measure[1:]} of the {what} of the model against {c.parameter}."
            f"{lines}" + " Grey: the recorded responses." * drawn
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = [column for column in COLUMNS if column in group]
            frame = group[columns].to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame.dropna(subset="sign"))  # units of other points of the sweep
        table = pd.concat(frames, ignore_index=True)
        if (table["sign"] == 1).all():
            table = table.drop(columns="sign")
        first = [column for column in points(result) if column in table]
        columns = [column for column in table if column not in first]
        return table[[*first, *columns]]


COLUMNS = (
    *("sign", "preferred", "preferred_direction", "direction_index", "dsi"),
    *("preferred_orientation", "orientation_index", "osi"),
)
LABELS = {"mean": "mean response", "peak": "peak response", "f1": "amplitude F1"}


def _measure(response: str, case: xr.Dataset) -> str:
    """The name of the measured response, with its units where they are known."""
    units = case["mean"].attrs.get("units", "")
    return LABELS[response] + f" ({units})" * bool(units)


def _blocks(trials: list[slice]) -> list[list[slice]]:
    """Trials that follow each other, up to `BLOCK` frames together."""
    blocks: list[list[slice]] = []
    for trial in trials:
        last = blocks[-1] if blocks else []
        if last and trial.start == last[-1].stop and trial.stop - last[0].start <= BLOCK:
            last.append(trial)
        else:
            blocks.append([trial])
    return blocks


def _amplitude(values: NDArray[Any], frequency: float) -> NDArray[Any]:
    """The amplitude (...) of values (frame, ...) at a frequency in cycles per frame.

    NaN if there is no whole cycle.
    """
    cycles = int(len(values) * frequency + 1e-6) if np.isfinite(frequency) else 0
    if cycles < 1:
        return np.full(values.shape[1:], np.nan)
    used = values[-round(cycles / frequency) :]
    wave = np.exp(-2j * np.pi * frequency * np.arange(len(used)))
    amplitude: NDArray[Any] = 2 * np.abs(np.tensordot(wave, used, 1)) / len(used)
    return amplitude


def _even(angles: NDArray[Any], period: float) -> bool:
    """Whether two angles or more are at equal steps of a period."""
    steps = np.diff(np.r_[angles, angles[0] + period])
    return len(angles) > 1 and bool(np.allclose(steps, period / len(angles), atol=0.01 * period))


def _turned(response: xr.DataArray, over: str, by: float) -> xr.DataArray:
    """Responses at angles that are larger by some degrees, interpolated; the period is 360."""
    x = response[over].values.astype(float)
    turned: xr.DataArray = xr.apply_ufunc(
        lambda values: np.interp(x + by, x, values, period=360),
        response,
        input_core_dims=[[over]],
        output_core_dims=[[over]],
        vectorize=True,
    )
    return turned


def _against_opposite(response: xr.DataArray, over: str, period: float) -> xr.DataArray:
    """(R(p) - R(q)) / (R(p) + R(q)) with the largest response R(p) and q half a period away."""
    x = response[over].values.astype(float)

    def index(values: NDArray[Any]) -> float:
        if np.isnan(values).any() or values.max() <= 0:
            return np.nan
        best = int(values.argmax())
        other = np.interp(x[best] + period / 2, x, values, period=period)
        return float((values[best] - other) / (values[best] + other))

    found: xr.DataArray = xr.apply_ufunc(index, response, input_core_dims=[[over]], vectorize=True)
    return found


def _units(case: xr.Dataset) -> int:
    """The number of units that have responses."""
    return max(1, int(case["mean"].notnull().any(case["mean"].dims[1:]).sum()))
