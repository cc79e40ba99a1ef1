"""Filters of a generalized linear model and its test by time rescaling (Pillow et al. 2008)."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups, points
from retinakit.regression import CountModel
from retinakit.report import pixel_edges
from retinakit.scores import NOT_RECORDED
from retinakit.spikes import ks_statistic, rescaled_intervals, separate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = np.linspace(0, 1, 201)
"""Quantiles at which the distribution of the rescaled intervals is stored."""

CELLS_SHOWN = 6
PARTNERS_NAMED = 6
"""Largest number of other cells whose names are in the legend of a panel."""

COLUMNS = {
    "ks": "KS",
    "ks_band": "95 % band",
    "inside": "inside",
    "kernel_norm": "norm of stimulus filter",
    "history_norm": "norm of history",
    "coupling_norm": "norm of coupling",
    "intervals": "intervals",
    "reason": "reason",
}
"""The columns of the table, by the variable of the result."""

NO_FILTER = 1e-6
"""A stimulus filter of a smaller norm has no shape: its prior has set it to 0."""

FEW = 20
"""With fewer intervals, the statistic is not computed."""


class GLMFiltersConfig(Config):
    """Options of the test."""

    split: Literal["test", "validation"] = Field(
        "test", description="Split whose spikes are compared with the predictions."
    )


class GLMFilters(Analysis):
    """Stimulus, history and coupling filters of each cell, and the test of its spikes.

    The model needs the parameter `kernel (cell, lag, ...)`, and may have `history (cell,
    history_lag)`, `coupling (cell, from_cell, coupling_lag)` and `largest_count (cell)`. The
    result has these filters, for a stimulus in space as `spatial (cell, y, x)` and `temporal (cell,
    lag)`; the norms `kernel_norm (cell)`, `history_norm (cell)` and `coupling_norm (cell)`, over
    all other cells; if the stimulus has channels, the `channel (cell)` in which the filter has the
    largest norm and which is shown; and
    the test of the spikes by time rescaling with the correction for bins of Haslinger et al.
    (2010): `distribution (cell, quantile)` of the rescaled intervals, the largest distance `ks
    (cell)` from the diagonal, the half width `ks_band (cell)` of its 95 % band, whether it is
    `inside (cell)`, and the number of `intervals (cell)`. A cell without a test has a `reason
    (cell)`.

    Raises:
        UserError: if the model has no filter for each cell.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.glm import GLM
        >>> model, recording = GLM.with_options(lags=5), small_recording()
        >>> _ = model.fit(recording)
        >>> result = GLMFilters().run(model, recording)
        >>> dict(result["coupling"].sizes), bool((result["ks"] < 0.1).all())
        ({'cell': 2, 'from_cell': 2, 'coupling_lag': 8}, True)
    """

    Config = GLMFiltersConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        parameters = model.parameters()
        if "kernel" not in parameters or "cell" not in parameters["kernel"].dims:
            raise UserError(
                f"the {type(model).__name__} has no parameter 'kernel' with the dimension 'cell'; "
                "glm_filters takes a model with a filter for each cell, such as glm or ln"
            )
        kernel = parameters["kernel"].astype(float)
        norm = (kernel**2).sum([dim for dim in kernel.dims if dim != "cell"]) ** 0.5
        if "channel" in kernel.dims:
            # Assigned, because a channel may have no coordinate.
            kernel = kernel.assign_coords(channel=kernel["channel"])
            kernel = kernel.isel(channel=(kernel**2).sum(("lag", "y", "x")).argmax("channel"))
        if kernel.sizes["y"] * kernel.sizes["x"] == 1:
            result = xr.Dataset({"temporal": kernel.isel(y=0, x=0, drop=True)})
        else:
            result = separate(kernel)[["spatial", "temporal"]]
        result = result.reset_coords("channel") if "channel" in result.coords else result
        result["kernel_norm"] = norm
        for name in {"spatial", "temporal"} & set(result):
            result[name] = result[name].where(norm > NO_FILTER, 0.0)
        for name in ("history", "coupling"):
            if name in parameters:
                filters = result[name] = parameters[name].astype(float)
                over = [dim for dim in filters.dims if dim != "cell"]
                result[f"{name}_norm"] = (filters**2).sum(over) ** 0.5
        test = self._test(model, data[self.config.split].to_dataset())
        return result.merge(test).assign_attrs(split=self.config.split)

    def _test(self, model: Model, split: xr.Dataset) -> xr.Dataset:
        predicted = model.predict(split).transpose(..., "frame", "cell")
        count = split["response"].transpose(..., "frame", "cell").astype(float)
        expected = np.broadcast_to(predicted.values, count.shape)
        cells = split.sizes["cell"]
        largest = model.parameters().get("largest_count", xr.DataArray([np.nan] * cells)).values
        names = ("ks", "ks_band", "inside", "intervals")
        found = {name: np.full(cells, np.nan) for name in names}
        distribution = np.full((cells, len(QUANTILES)), np.nan)
        reasons = np.full(cells, "", object)
        for cell in range(cells):
            observed, rate = count.values[..., cell], expected[..., cell]
            if not np.isfinite(observed).any():
                reasons[cell] = NOT_RECORDED
                continue
            if not np.isfinite(rate).any():
                reasons[cell] = f"no frame has {model.lags} frames of history"
                continue
            if np.nanmin(rate) < 0 or np.nanmin(observed) < 0:
                reasons[cell] = "a prediction or a response is negative"
                continue
            most = None if np.isnan(largest[cell]) else int(largest[cell])
            rate = CountModel(largest=most).rate_of(rate)
            quantiles = rescaled_intervals(rate, observed, largest=most, seed=self.seed)
            found["intervals"][cell] = len(quantiles)
            if len(quantiles) < FEW:
                reasons[cell] = f"there are fewer than {FEW} intervals"
                continue
            found["ks"][cell], found["ks_band"][cell] = ks_statistic(quantiles)
            found["inside"][cell] = found["ks"][cell] < found["ks_band"][cell]
            distribution[cell] = np.searchsorted(quantiles, QUANTILES, "right") / len(quantiles)
        result = xr.Dataset(
            {name: ("cell", values) for name, values in found.items()}
            | {"distribution": (("cell", "quantile"), distribution)},
            coords={"cell": split["cell"].variable, "quantile": QUANTILES},
        )
        return result.assign(reason=("cell", reasons.astype(str))) if reasons.any() else result

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(islice(_cells(result), CELLS_SHOWN))
        panels = [
            name
            for name in ("spatial", "temporal", "history", "coupling", "distribution")
            if any(name in cell for _, cell in shown)
        ]
        figure = Figure(figsize=(2.3 * len(panels), 2.0 * len(shown) + 0.3), layout="constrained")
        grid = figure.subplots(len(shown), len(panels), squeeze=False)
        for row, (label, cell) in zip(grid, shown, strict=True):
            for axis, name in zip(row, panels, strict=True):
                if name in cell and cell[name].notnull().any():
                    DRAW[name](axis, cell)
                else:
                    axis.axis("off")
            row[0].set_ylabel(label, fontsize=8)
        for axis, name in zip(grid[0], panels, strict=True):
            axis.set_title(TITLES[name], fontsize=9)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        total = sum(1 for _ in _cells(result))
        some = (
            f" The first {CELLS_SHOWN} of {total} cells are shown." if total > CELLS_SHOWN else ""
        )
        colour = any("channel" in group for group in groups(result).values())
        channel = " in the channel where it is largest" if colour else ""
        return (
            f"Stimulus filter{channel}, gain exp(filter) of the rate after a spike of the cell and "
            "of other cells, and the distribution of the rescaled interspike intervals of the "
            "held-out spikes with the 95 % band of the Kolmogorov-Smirnov statistic: a curve "
            f"inside the band means that the model describes the intervals.{some}"
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            frame = group[[column for column in COLUMNS if column in group]].to_dataframe()
            frames.append(frame.reset_index().assign(model=name))
        table = pd.concat(frames, ignore_index=True)
        table["inside"] = table["inside"].map({1.0: "yes", 0.0: "no"}).fillna("")
        index = [column for column in points(result) if column in table]
        return table[[*index, *(c for c in COLUMNS if c in table)]].rename(columns=COLUMNS)


def _cells(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Each cell of each point of the sweeps, with a label."""
    for label, case in cases(result):
        if "cell" not in case.dims:
            yield label, case
            continue
        for index in range(case.sizes["cell"]):
            cell = case.isel(cell=index)
            yield f"{label}\ncell {cell['cell'].item()}", cell


def _draw_spatial(axis: Any, cell: xr.Dataset) -> None:
    image = cell["spatial"]
    limit = float(abs(image).max()) or 1.0
    y, x = pixel_edges(image["y"], image["x"])
    axis.pcolormesh(x, y, image.values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    axis.set(xticks=[], yticks=[])


def _draw_temporal(axis: Any, cell: xr.Dataset) -> None:
    axis.axhline(0, color="0.8", lw=0.8)
    axis.plot(-1000 * cell["lag_time"], cell["temporal"], color="C0")
    axis.set_xlabel("time before the bin (ms)", fontsize=8)


def _draw_history(axis: Any, cell: xr.Dataset) -> None:
    axis.axhline(1, color="0.8", lw=0.8)
    axis.plot(1000 * cell["history_lag_time"], np.exp(cell["history"]), color="C3", marker=".")
    axis.set(ylim=(0, None))
    axis.set_xlabel("time after a spike (ms)", fontsize=8)


def _draw_coupling(axis: Any, cell: xr.Dataset) -> None:
    axis.axhline(1, color="0.8", lw=0.8)
    own = str(cell["cell"].item())
    others = [i for i, name in enumerate(cell["from_cell"].values) if str(name) != own]
    named = len(others) <= PARTNERS_NAMED
    for other in others:
        filters = cell["coupling"].isel(from_cell=other)
        if filters.isnull().all():  # a cell of another recording
            continue
        label = f"from {cell['from_cell'].values[other]}" if named else None
        axis.plot(1000 * cell["coupling_lag_time"], np.exp(filters), marker=".", lw=1, label=label)
    # Couplings near 0 are not enlarged.
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.9), max(high, 1.1))
    if named and others:
        axis.legend(frameon=False, fontsize=7)
    axis.set_xlabel("time after a spike (ms)", fontsize=8)


def _draw_distribution(axis: Any, cell: xr.Dataset) -> None:
    quantile, band = cell["quantile"].values, float(cell["ks_band"])
    axis.fill_between(quantile, quantile - band, quantile + band, color="0.9")
    axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    axis.plot(quantile, cell["distribution"], color="C0")
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.set_xlabel("quantile of the model", fontsize=8)


DRAW = {
    "spatial": _draw_spatial,
    "temporal": _draw_temporal,
    "history": _draw_history,
    "coupling": _draw_coupling,
    "distribution": _draw_distribution,
}

TITLES = {
    "spatial": "stimulus filter, space",
    "temporal": "stimulus filter, time",
    "history": "gain by own spikes",
    "coupling": "gain by other cells",
    "distribution": "rescaled intervals",
}
