"""The spike-triggered average of each cell, with its significance and a Gaussian outline."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Progress, groups, silent
from retinakit.report import draw_field, extended
from retinakit.spikes import (
    ELLIPSE,
    FALSE_POSITIVE,
    analytic_noise,
    receptive_field,
    shuffled_noise,
    sta,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class STAConfig(Config):
    """Options of the average."""

    lags: int = Field(20, ge=1, description="Number of lags.")
    first_lag: int = Field(
        0, ge=0, description="First lag; 0 is the frame shown in the response's bin."
    )
    splits: list[Literal["train", "validation", "test"]] = Field(
        ["train"], min_length=1, description="Splits whose frames are averaged."
    )
    significance: Literal["analytic", "shuffled", "background"] = Field(
        "analytic",
        description="Standard deviation of the noise in the average. 'analytic': from the "
        "autocorrelations of responses and stimulus; 'shuffled': that of averages with responses "
        "shifted against the stimulus; 'background': a robust estimate from the average itself, "
        "for a screen that is much larger than the receptive field.",
    )
    draws: int = Field(20, ge=1, description="Number of shifts for significance 'shuffled'.")
    false_positive: float = Field(
        FALSE_POSITIVE,
        gt=0,
        le=1,
        description="Probability with which the average of a cell without a receptive field gets "
        "an outline; 1 draws outlines for all cells.",
    )


class STA(Analysis):
    """Spike-triggered average with its spatial and temporal parts, z-scores, and outline.

    The average is Σ_t r_t s_{t-lag} / Σ_t r_t over the frames t with a full history, with the
    response r and the stimulus s. For a response of either sign, such as a z-scored calcium trace,
    it is the covariance of stimulus and response over the mean absolute deviation of the response,
    which does not depend on the baseline (see `retinakit.spikes.sta`). The result has
    `sta (cell, lag, [channel,] y, x)` in the units of the stimulus, `spikes (cell)`, the sum of the
    responses that the average is divided by, and the variables of
    `retinakit.spikes.receptive_field`: the peak of the average smoothed over space with its
    `peak_z (cell)`, the `threshold (cell)` of |z| and the `deviation (cell)` of the noise; the
    temporal filter and map `temporal (cell, lag)` and `spatial (cell, y, x)` with their
    `separability (cell)`; and the ellipse of a Gaussian fitted to the map around the peak (one
    standard deviation, in the units of y and x), NaN where there is none, with the `reason (cell)`.
    If the stimulus has channels, these are those of the channel with the largest |z|.

    Example:
        >>> from retinakit.testing import small_recording
        >>> result = STA.with_options(lags=5).run(small_recording())
        >>> dict(result["sta"].sizes)
        {'cell': 2, 'lag': 5, 'y': 8, 'x': 8}
    """

    Config = STAConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 5}

    def run(self, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        splits = [data[name].to_dataset() for name in c.splits]
        result = sta(splits, c.lags, first_lag=c.first_lag, progress=progress)
        average = result["sta"]
        false_positive = c.false_positive
        if "channel" in average.dims:
            average = average.transpose("cell", "channel", ...)
            if false_positive < 1:
                false_positive /= average.sizes["channel"]
        field = receptive_field(average, self._noise(splits), false_positive)
        if "channel" in average.dims:
            strongest = field["peak_z"].fillna(-1).argmax("channel")
            field = field.isel(channel=strongest).drop_vars("channel", errors="ignore")
        return result.merge(field, join="exact")

    def _noise(self, splits: list[xr.Dataset]) -> xr.Dataset | None:
        c = self.config
        if c.significance == "background":
            return None
        if c.significance == "analytic":
            return analytic_noise(splits, c.first_lag + c.lags)
        return shuffled_noise(splits, c.lags, c.first_lag, c.draws, self.seed)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        cells = [
            (f"{name} {cell}" if len(groups(result)) > 1 else str(cell), group.isel(cell=i))
            for name, group in groups(result).items()
            for i, cell in enumerate(group["cell"].values)
        ]
        cells = [(label, _one_point(cell)) for label, cell in cells][:20]
        columns = min(5, len(cells))
        rows = -(-len(cells) // columns)
        figure = Figure(figsize=(2.1 * columns, 3.0 * rows), layout="constrained")
        axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1.3] * rows)
        for axis in axes.flat:
            axis.set_axis_off()
        for index, (label, cell) in enumerate(cells):
            row, column = divmod(index, columns)
            image, course = axes[2 * row, column], axes[2 * row + 1, column]
            image.set_axis_on()
            _draw_map(image, cell)
            image.set_title(f"cell {label}")
            if not extended(cell["spatial"]):
                continue  # the average is its temporal filter
            course.set_axis_on()
            course.plot(-1000 * cell["lag_time"], cell["temporal"], color="0.2")
            course.axhline(0, color="0.8", lw=0.8, zorder=0)
            course.set(yticks=[], xlabel="time before response (ms)" if row == rows - 1 else "")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        many = sum(group.sizes["cell"] for group in groups(result).values())
        first = f" (the first 20 of {many} cells)" if many > 20 else ""
        event = "spike" if set(map(_counted, groups(result).values())) == {"spikes"} else "response"
        return (
            f"{event.capitalize()}-triggered averages{first}: the spatial map with the 1.5-sd "
            "outline of the fitted Gaussian, where there is one (the table gives the reason where "
            "there is none), and below it the temporal filter. Of a large screen, only the part "
            "around the receptive field is shown, with its first and last x and y. The average is "
            "the product of the two: it is positive where the map is red and the temporal filter "
            "is positive. For bars, the average itself is drawn over time and position, and for a "
            "full field over time."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        columns = ["spikes", "peak_z", "threshold", "separability", *ELLIPSE[1:5], "reason"]
        frames = []
        for name, group in groups(result).items():
            frame = group[columns].to_dataframe().reset_index()
            frame.insert(0, "dataset", name)
            frame = frame[[c for c in frame if c not in group.coords or c in group.dims]]
            frames.append(frame.rename(columns={"spikes": _counted(group)}))
        return pd.concat(frames, ignore_index=True)


def _counted(group: xr.Dataset) -> str:
    """What the average is divided by: a number of spikes, or a weight in the response's units."""
    return "spikes" if group["spikes"].attrs.get("units") == "spikes" else "weight"


def _draw_map(axis: Any, cell: xr.Dataset) -> None:
    """The spatial map and its outline; of a large screen, the part around the outline."""
    from matplotlib.patches import Ellipse

    if len(extended(cell["spatial"])) < 2:  # the average itself can be drawn
        draw_field(axis, cell["sta"], labelled=True)
        return
    shown = _around_outline(cell)
    image = cell["spatial"].isel(shown)
    draw_field(axis, image)
    axis.set(xticks=[], yticks=[])
    if shown:
        axis.set(xticks=image["x"].values[[0, -1]], yticks=image["y"].values[[0, -1]])
        axis.tick_params(labelsize=6, length=2, pad=1)
    if np.isfinite(cell["sd_minor"]):
        axis.add_patch(
            Ellipse(
                (float(cell["centre_x"]), float(cell["centre_y"])),
                3 * float(cell["sd_major"]),
                3 * float(cell["sd_minor"]),
                angle=float(np.degrees(cell["angle"])),
                fill=False,
                lw=1.2,
                color="k",
            )
        )


def _around_outline(cell: xr.Dataset) -> dict[str, slice]:
    """4 standard deviations around the centre, at least 8 checks; empty on a small screen."""
    if not np.isfinite(cell["sd_minor"]):
        return {}
    shown, large = {}, False
    for dim in ("y", "x"):
        place = cell[dim].values
        step = abs(place[-1] - place[0]) / (len(place) - 1)
        half = int(np.ceil(max(4 * float(cell["sd_major"]) / step, 8)))
        middle = int(np.abs(place - float(cell[f"centre_{dim}"])).argmin())
        shown[dim] = slice(max(0, middle - half), middle + half + 1)
        large |= 4 * half < len(place)
    return shown if large else {}


def _one_point(cell: xr.Dataset) -> xr.Dataset:
    """The first point of all other sweeps."""
    extra = [d for d in cell["spatial"].dims if d not in ("y", "x")]
    return cell.isel(dict.fromkeys(extra, 0))
