"""Scores against a swept option (Yan et al. 2020, Fig 3; Klindt et al. 2017, Figs 3 and 5)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Analysis, Config, UserError, groups, sweep_dims
from retinakit.report import ABSENT, chosen, curves, draw, number_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FEW = 4
"""Largest number of curves whose legend is drawn inside the panel."""


class SweepCurveConfig(Config):
    """Options of the curves."""

    scores: list[str] = Field(
        ["correlation"],
        min_length=1,
        description="Variables of the results, such as correlation_rate, with one panel for each.",
    )
    over: str | None = Field(
        None,
        description="Swept option on the horizontal axis; by default the first one with numbers.",
    )
    spread: list[str] = Field(
        ["seed"],
        description="Dimensions, swept options or cell, over which mean and standard deviation are "
        "taken.",
    )
    scale: Literal["linear", "log"] = Field("linear", description="Scale of the horizontal axis.")
    best_over: list[str] = Field(
        [],
        description="Swept options, such as penalties, whose best value is chosen by best_by at "
        "each point of the other options.",
    )
    best_by: str = Field(
        "mse_validation",
        description="Variable whose mean over cells chooses among best_over; the smallest is the "
        "best.",
    )
    largest: bool = Field(False, description="Whether the largest value of best_by is the best.")
    floor: float | None = Field(
        None,
        description="Lower bound to which scores are clipped, such as 0 for the FEV of Klindt et "
        "al.",
    )
    reach: float | None = Field(
        None,
        description="Level of the score; the value of the swept option at which each curve first "
        "reaches it is reported.",
    )


class SweepCurve(Analysis):
    """Mean and standard deviation of scores of other analyses against a swept option.

    There is one curve for each model and each point of its other swept options. The result has
    `mean`, `deviation` (with n - 1) and `number (score, curve, OVER)`, where the dimension OVER is
    named after the swept option. A model that was not swept over it has the same value at all
    points, and `swept` is false. With `reach`, `reached (score, curve)` is the value of the swept
    option at which the mean first reaches the level. It is interpolated linearly in the logarithm
    of the option if all its values are positive, else in the option.

    Raises:
        UserError: if no result was swept over an option with numbers, or a score is missing.

    Example:
        >>> group = xr.Dataset(
        ...     {"fev": (("filters", "seed"), [[0.1, 0.3], [0.6, 0.8]])},
        ...     {"filters": [1, 4], "seed": [0, 1]},
        ...     {"sweep": "filters,seed"},
        ... )
        >>> scores = {"score": xr.DataTree.from_dict({"/cnn": group})}
        >>> result = SweepCurve.with_options(scores=["fev"], over="filters").run(scores)
        >>> result["mean"].values.round(2).tolist()
        [[[0.2, 0.7]]]
    """

    Config = SweepCurveConfig

    def run(self, results: Mapping[str, xr.DataTree]) -> xr.Dataset:
        c = self.config
        together = _together(results)
        if c.best_over:
            together = chosen(together, c.best_over, c.best_by, largest=c.largest)
        if c.floor is not None:
            floor = c.floor
            together = together.map_over_datasets(
                lambda group: group.assign(
                    {n: group[n].clip(min=floor) for n in c.scores if n in group}
                )
            )
        over = c.over or self._first(together)
        found = [curves(together, score, over, c.spread) for score in c.scores]
        result: xr.Dataset = xr.concat(found, "score", join="outer", fill_value=ABSENT)
        result = result.assign_coords(
            score=c.scores, long_name=("score", [_long_name(together, s) for s in c.scores])
        )
        result.attrs["over"] = over
        if c.reach is not None:
            means = result["mean"].where(result["swept"]).transpose("score", "curve", over).values
            reached = [[_first_at(result[over].values, m, c.reach) for m in row] for row in means]
            result["reached"] = (("score", "curve"), np.array(reached, float))
        return result

    def _first(self, result: xr.DataTree) -> str:
        for group in groups(result).values():
            for dim in sweep_dims(group):
                if dim not in (*self.config.spread, "cell") and group[dim].dtype.kind in "iuf":
                    return dim
        raise UserError(
            "no result was swept over an option with numbers; sweep one, or name an option in over"
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        table = result.to_dataset()
        over, scores = table.attrs["over"], table.sizes["score"]
        beside = 1.4 if table.sizes["curve"] > FEW else 0.0
        figure = Figure(figsize=(1.2 + 4.0 * scores + beside, 3.6), layout="constrained")
        for index, axis in enumerate(figure.subplots(1, scores, squeeze=False)[0]):
            panel = table.isel(score=index)
            draw(axis, panel.isel(curve=panel["number"].any(over).values), over)
            axis.set_ylabel(panel["long_name"].item())
            number_axis(axis, over, table[over].values, self.config.scale)
        if table.sizes["curve"] > FEW:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, frameon=False, loc="outside right upper")
        elif table.sizes["curve"] > 1:
            figure.axes[0].legend(frameon=False)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        table = result.to_dataset()
        number = int(table["number"].max())
        what = f"mean ± standard deviation of {number}" if number > 1 else "one value per point"
        level = "" if table["swept"].all() else " Dashed: models that were not swept over it."
        floor = self.config.floor
        clipped = "" if floor is None else f" Scores below {floor:g} count as {floor:g}."
        infinite = int(np.isinf(table["mean"]).sum())
        edge = f" Triangles at the edge: {infinite} infinite means." if infinite else ""
        return (
            f"Scores against {table.attrs['over']}: {what}.{level}{clipped}{edge}"
            f"{self._reached(table)}"
        )

    def _reached(self, table: xr.Dataset) -> str:
        if "reached" not in table:
            return ""
        first = table["reached"].isel(score=0)
        found = [
            f"{curve} at {value:.3g}"
            for curve, value in zip(first["curve"].values, first.values, strict=True)
            if np.isfinite(value)
        ]
        what = "; ".join(found) or "nowhere"
        return f" {table['long_name'].values[0]} of {self.config.reach:g} is reached: {what}."

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        table = result.to_dataset().drop_vars(["long_name", "reached"], errors="ignore")
        frame: pd.DataFrame = table[["mean", "deviation", "number"]].to_dataframe()
        return frame[frame["number"] > 0].reset_index()


def _first_at(over: NDArray[Any], mean: NDArray[Any], level: float) -> float:
    """Where a curve first reaches a level, by linear interpolation between its points."""
    known = np.isfinite(mean)
    x, y = over[known].astype(float), mean[known]
    above = np.flatnonzero(y >= level)
    if len(above) == 0:
        return np.nan
    last = above[0]
    if last == 0:
        return float(x[0])
    logarithmic = bool((x > 0).all())
    scaled = np.log(x) if logarithmic else x
    part = (level - y[last - 1]) / (y[last] - y[last - 1])
    value = scaled[last - 1] + part * (scaled[last] - scaled[last - 1])
    return float(np.exp(value) if logarithmic else value)


def _together(results: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Several results as one tree, with a group for each model of each result."""
    if len(results) == 1:
        return next(iter(results.values()))
    return xr.DataTree.from_dict(
        {
            "/" + " ".join(filter(None, [model, f"({step})"])): group
            for step, result in results.items()
            for model, group in groups(result).items()
        }
    )


def _long_name(result: xr.DataTree, score: str) -> str:
    having = next(group[score] for group in groups(result).values() if score in group)
    return str(having.attrs.get("long_name", score.replace("_", " ")))
