"""Frames of some trials of a stimulus, as film strips."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator

from retinakit.contracts import Analysis, Config, UserError, groups, shown_frames, sweep_dims
from retinakit.report import extended, pixel_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_SHOWN = ("time", "segment", "trial", "from_onset", "part", "duration")
"""Coordinates along `frame` that are not part of a trial's label."""

LONGEST = 5000
"""Largest number of frames of a trial whose course in time is shown."""

MANY = 8
"""Largest number of parameters in the label of a trial."""


class FilmStripConfig(Config):
    """Options of the trials and frames that are shown."""

    split: Literal["train", "validation", "test"] = Field("test", description="The split.")
    trials: int | list[int] = Field(
        4,
        description="Number of trials, evenly spaced among all segments of the split, or a list of "
        "the segments' indices from 0.",
    )
    frames: int = Field(6, ge=1, description="Number of frames of each trial, evenly spaced.")

    @field_validator("trials")
    @classmethod
    def _some(cls, value: int | list[int]) -> int | list[int]:
        if (len(value) if isinstance(value, list) else value) < 1:
            raise ValueError("must be 1 trial or more")
        return value


class FilmStrip(Analysis):
    """Film strips of some trials of a stimulus.

    Each segment is a trial. Of a stimulus with rows and columns some frames are shown, of bars the
    position against time, and of a full field its course in time. Of several channels, the first
    one is shown. The grey screen before and after a stimulus is left out, where it is known from
    the coordinates `from_onset` and `duration`. Trials are labelled with the coordinates along
    `frame` that are constant in each segment, such as `direction` and `speed`.

    The result has `strip (trial, shown, y, x)`, the frames, and `from_start (trial, shown)`, their
    times in s from the start of the trial. `label (trial)` is the text of the label.

    Raises:
        UserError: if a trial is not in the split.

    Example:
        >>> from retinakit.testing import small_recording
        >>> strip = FilmStrip.with_options(split="train", trials=2, frames=3)
        >>> dict(strip.run(small_recording())["strip"].sizes)
        {'trial': 2, 'shown': 3, 'y': 8, 'x': 8}
    """

    Config = FilmStripConfig
    quick: ClassVar[dict[str, Any]] = {"trials": 2, "frames": 3}

    def run(self, data: xr.DataTree) -> xr.Dataset:
        split = data[self.config.split].to_dataset()
        parts = shown_frames(split)
        chosen = self._chosen(len(parts))
        stimulus = split["stimulus"]
        if "channel" in stimulus.dims:
            stimulus = stimulus.isel(channel=0)
        shown = [parts[index] for index in chosen]
        strip, start = self._strip(stimulus, shown)
        if len(extended(stimulus)) == 2 and np.all(strip == strip[:, :, :1, :1]):
            stimulus = stimulus.isel(y=[0], x=[0])  # a full field on many checks
            strip, start = self._strip(stimulus, shown)
        # 0 is grey in a stimulus of contrast, and black in one of unsigned integers.
        about = stimulus.attrs | {"grey": int(stimulus.dtype.kind not in "ub")}
        labels = [_label(split.isel(frame=[parts[index].start])) for index in chosen]
        return xr.Dataset(
            {
                "strip": (("trial", "shown", "y", "x"), strip, about),
                "from_start": (
                    ("trial", "shown"),
                    start * split.attrs["frame_interval"],
                    {"units": "s"},
                ),
                "label": ("trial", labels),
            },
            coords={
                "trial": chosen,
                "shown": np.arange(strip.shape[1]),
                "y": stimulus["y"].variable,
                "x": stimulus["x"].variable,
            },
        )

    def _strip(
        self, stimulus: xr.DataArray, parts: list[slice]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The frames (trial, shown, y, x) of trials, and their numbers (trial, shown) in them."""
        whole = len(extended(stimulus)) < 2
        lengths = [part.stop - part.start for part in parts]
        if whole:
            lengths = [min(length, LONGEST) for length in lengths]
        longest = max(lengths)
        number_shown = longest if whole else min(self.config.frames, longest)
        shape = (len(parts), number_shown, *stimulus.shape[1:])
        strip = np.full(shape, np.nan, np.float32)
        number = np.full(shape[:2], np.nan)
        for row, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            at = np.arange(length) if whole else _spaced(shape[1], length)
            strip[row, : len(at)] = stimulus.isel(frame=part.start + at).values
            number[row, : len(at)] = at
        return strip, number

    def _chosen(self, count: int) -> NDArray[np.int64]:
        """The indices of the trials."""
        given = self.config.trials
        if isinstance(given, int):
            return np.unique(_spaced(min(given, count), count))
        for index in given:
            if not 0 <= index < count:
                raise UserError(
                    f"there is no trial {index} in {self.config.split}, which has {count} trials; "
                    f"give numbers from 0 to {count - 1}"
                )
        return np.array(given)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        strips = {
            name: group.isel(dict.fromkeys(sweep_dims(group), 0))
            for name, group in groups(result).items()
        }
        figures = {name: _height(one) for name, one in strips.items()}
        figure = Figure(figsize=(9.5, sum(figures.values())), layout="constrained")
        parts = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=[*figures.values()])
        for part, (name, one) in zip(parts[:, 0], strips.items(), strict=True):
            if len(strips) > 1:
                part.suptitle(name)
            _draw(part, one)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        two = any(len(extended(group["strip"])) == 2 for group in groups(result).values())
        return (
            f"Some trials of the split {self.config.split}, "
            + ("one per row; time from the start of the trial is above each frame." if two else "")
            + ("" if two else "as the stimulus against the time from their start.")
        )


def _spaced(count: int, length: int) -> NDArray[np.int64]:
    """`count` indices of `length` things, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def _label(frame: xr.Dataset) -> str:
    """The parameters of a trial as text, one per line."""
    parts = []
    for name, coordinate in frame.coords.items():
        if coordinate.dims != ("frame",) or name in NOT_SHOWN:
            continue
        value = coordinate.values[0]
        if coordinate.dtype.kind == "f" and np.isnan(value):
            continue
        text = f"{value:.3g}" if coordinate.dtype.kind == "f" else str(value)
        units = coordinate.attrs.get("units", "")
        unit = "" if units == "1" else "°" if units == "degree" else f" {units}"
        parts.append(f"{str(name).replace('_', ' ')} {text}{unit.rstrip()}")
    return "\n".join(parts[:MANY])


def _height(strip: xr.Dataset) -> float:
    """Height of the figure of one recording, in inches."""
    place = extended(strip["strip"])
    if len(place) < 2:
        return 1.3 * strip.sizes["trial"] + 0.5
    ratio = strip.sizes["y"] / strip.sizes["x"]
    width = 7.6 / strip.sizes["shown"]
    return float(max(0.9, width * ratio + 0.3) * strip.sizes["trial"] + 0.4)


def _draw(figure: Any, strip: xr.Dataset) -> None:
    values, times = strip["strip"], strip["from_start"]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if values.attrs.get("grey"):
        low, high = -max(-low, high), max(-low, high)
    high = high if high > low else low + 1
    colours: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
    place = extended(values)
    columns = strip.sizes["shown"] if len(place) == 2 else 1
    axes = figure.subplots(strip.sizes["trial"], columns, squeeze=False)
    for row, one in enumerate(axes):
        label = str(strip["label"].values[row]) or f"trial {int(strip['trial'][row])}"
        one[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        if len(place) == 2:
            y, x = pixel_edges(strip["y"].values, strip["x"].values)
            for column, axis in enumerate(one):
                image = values.isel(trial=row, shown=column).transpose("y", "x").values
                axis.imshow(
                    image, extent=(x[0], x[-1], y[-1], y[0]), interpolation="nearest", **colours
                )
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{float(times[row, column]):.2f} s", fontsize=8)
            continue
        known = np.isfinite(times.values[row])
        time, course = times.values[row, known], values.isel(trial=row).values[known]
        course = course.reshape(len(course), -1)
        if place:
            edges, at = pixel_edges(strip[place[0]].values, time)
            one[0].pcolormesh(at, edges, course.T, **colours)
            units = strip[place[0]].attrs.get("units", "")
            one[0].text(
                1.01,
                0.5,
                f"{place[0]} ({units})",
                transform=one[0].transAxes,
                rotation=90,
                va="center",
            )
        else:
            one[0].plot(time, course[:, 0], color="0.2", lw=0.8)
            room = 0.05 * (high - low)
            one[0].set_ylim(low - room, high + room)
        one[0].set_xlim(0, float(np.nanmax(times)))
    if len(place) < 2:
        axes[-1, 0].set_xlabel("time from the start of the trial (s)")
