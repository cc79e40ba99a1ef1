"""The spike-triggered average of each cell, with its significance and a Gaussian outline."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Progress, groups, silent
from retinakit.report import pixel_edges
from retinakit.spikes import (
    ELLIPSE,
    analytic_deviation,
    fit_ellipse,
    separate,
    shuffled_deviation,
    sta,
    z_score,
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
    null: Literal["background", "analytic", "shuffled"] = Field(
        "background",
        description="Standard deviation of the z-scores. 'background': a robust estimate from the "
        "average itself; 'analytic': the one expected for white noise; 'shuffled': that of "
        "averages with spikes shifted against the stimulus.",
    )
    draws: int = Field(20, ge=1, description="Number of shifts for null 'shuffled'.")
    threshold: float = Field(
        5.0, gt=0, description="Smallest peak |z| at which a Gaussian outline is fitted."
    )


class STA(Analysis):
    """Spike-triggered average with its spatial and temporal parts, z-scores, and outline.

    The average is Σ_t r_t s_{t-lag} / Σ_t r_t over the frames t with a full history, with the
    response r and the stimulus s. The result has `sta (cell, lag, [channel,] y, x)` in the units
    of the stimulus; `z (cell, lag, y, x)`, the average over the standard deviation chosen by
    `null`, and the largest |z| `peak_z (cell)`; the first singular vectors `spatial (cell, y, x)`
    and `temporal (cell, lag)`, with `separability (cell)`, the fraction of the power they explain;
    the ellipse of a Gaussian fitted to the spatial part (one standard deviation, in the units of y
    and x; NaN if `peak_z` is below the threshold); and the number of `spikes (cell)`. If the
    stimulus has channels, all but `sta` are those of each cell's strongest channel.

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
        field = result["sta"]
        if "channel" in field.dims:
            # The channel with the largest power of each cell.
            power = (field**2).sum(("lag", "y", "x"))
            field = field.isel(channel=power.argmax("channel")).drop_vars(
                "channel", errors="ignore"
            )
        parts = separate(field)
        z = self._z_score(field, splits)
        result = result.merge(parts).assign(z=z, peak_z=abs(z).max(("lag", "y", "x")))
        found = result["peak_z"] >= self.config.threshold
        return result.merge(fit_ellipse(result["spatial"].where(found)), join="exact")

    def _z_score(self, field: xr.DataArray, splits: list[xr.Dataset]) -> xr.DataArray:
        c = self.config
        if c.null == "background":
            return z_score(field)
        if c.null == "analytic":
            return field / analytic_deviation(splits, c.first_lag + c.lags)
        return field / shuffled_deviation(splits, c.lags, c.first_lag, c.draws, self.seed)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure
        from matplotlib.patches import Ellipse

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
            course.set_axis_on()
            y, x = pixel_edges(cell["y"].values, cell["x"].values)
            limit = float(np.abs(cell["spatial"]).max()) or 1.0
            image.pcolormesh(x, y, cell["spatial"], cmap="RdBu_r", vmin=-limit, vmax=limit)
            image.set_aspect("equal")
            image.invert_yaxis()
            image.set(xticks=[], yticks=[], title=f"cell {label}")
            if np.isfinite(cell["sd_major"]):
                image.add_patch(
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
            course.plot(-1000 * cell["lag_time"], cell["temporal"], color="0.2")
            course.axhline(0, color="0.8", lw=0.8, zorder=0)
            course.set(yticks=[], xlabel="time before spike (ms)" if row == rows - 1 else "")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        many = sum(group.sizes["cell"] for group in groups(result).values())
        first = f" (the first 20 of {many} cells)" if many > 20 else ""
        return (
            f"Spike-triggered averages{first}: the spatial map with the 1.5-sd outline of the "
            f"fitted Gaussian (none if the peak |z| is below {self.config.threshold:g} or there "
            "are fewer than 3 rows or columns), and below it the temporal filter. The average is "
            "their product: it is positive where the map is red and the temporal filter is "
            "positive."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        columns = ["spikes", "peak_z", "separability", *ELLIPSE[1:5]]
        frames = []
        for name, group in groups(result).items():
            frame = group[columns].to_dataframe().reset_index()
            frame.insert(0, "dataset", name)
            frames.append(frame[[c for c in frame if c not in group.coords or c in group.dims]])
        return pd.concat(frames, ignore_index=True)


def _one_point(cell: xr.Dataset) -> xr.Dataset:
    """The first point of all other sweeps."""
    extra = [d for d in cell["spatial"].dims if d not in ("y", "x")]
    return cell.isel(dict.fromkeys(extra, 0))
