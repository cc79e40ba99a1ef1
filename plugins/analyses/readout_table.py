"""A table of one score, models against recordings (Klindt et al. 2017, Table 1)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, UserError, groups, sweep_dims
from retinakit.report import chosen
from retinakit.scores import CONSTANT_PREDICTION, NOT_PREDICTED, NOT_RECORDED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CORRELATIONS = ("correlation", "correlation_rate")


class ReadoutTableConfig(Config):
    """Options of the table."""

    score: str = Field(
        "correlation", description="Variable of the results with the score of each cell."
    )
    columns: str = Field("scan", description="Swept option whose values are the table's columns.")
    best_by: str = Field(
        "bits_per_spike_validation",
        description="Variable, measured on the validation frames, whose mean over cells chooses "
        "the best point of all other swept options, separately in each column.",
    )
    largest: bool = Field(
        True, description="Whether the largest value of best_by is the best; else the smallest."
    )


class ReadoutTable(Analysis):
    """The mean score over cells, for each model (rows) in each recording (columns).

    For all other swept options, such as penalties, seeds or layers, the point with the best
    validation score is used for each recording. The result has `value (row, column)`, the mean over
    the cells of a recording; `cells (row, column)`, their number; `without_score (row, column)`,
    the number of recorded cells that are left out; and `average (row)`, the mean over the cells of
    all recordings.

    Cells are left out whose score is not defined for any model, for example because their response
    is constant. The mean does not improve where a model alone is the reason: a constant prediction,
    which has no correlation, counts as a correlation of 0, and with a missing prediction the mean
    is NaN. If a score is -inf, so is the mean.

    Raises:
        UserError: if a result does not have the score.

    Example:
        >>> group = xr.Dataset(
        ...     {"correlation": (("scan", "cell"), [[0.2, 0.4], [0.5, 0.7]])},
        ...     {"scan": [1, 2], "cell": [0, 1]},
        ...     {"sweep": "scan"},
        ... )
        >>> scores = {"score": xr.DataTree.from_dict({"/lnp": group})}
        >>> result = ReadoutTable().run(scores)
        >>> result["value"].values.round(2).tolist(), result["average"].values.round(2).tolist()
        ([[0.3, 0.6]], [0.45])
    """

    Config = ReadoutTableConfig

    def run(self, results: Mapping[str, xr.DataTree]) -> xr.Dataset:
        c = self.config
        rows: dict[str, dict[str, tuple[float, int, int]]] = {}
        label = c.score.replace("_", " ")
        for result in results.values():
            for name, group in groups(result).items():
                if c.score not in group:
                    raise UserError(
                        f"the results of '{name}' have no variable '{c.score}'; choose another "
                        "score"
                    )
                rows[name or c.score] = self._row(name, group)
                label = group[c.score].attrs.get("long_name", label)
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        value = np.full((len(rows), len(columns)), np.nan)
        cells, left_out = np.zeros(value.shape, np.int64), np.zeros(value.shape, np.int64)
        for i, row in enumerate(rows.values()):
            for column, found in row.items():
                j = columns.index(column)
                value[i, j], cells[i, j], left_out[i, j] = found
        total = np.where(cells > 0, value, 0) * np.maximum(cells, 1)
        number = cells.sum(1)
        average = np.where(number > 0, total.sum(1) / np.maximum(number, 1), np.nan)
        return xr.Dataset(
            {
                "value": (("row", "column"), value),
                "cells": (("row", "column"), cells),
                "without_score": (("row", "column"), left_out),
                "average": ("row", average),
            },
            coords={"row": list(rows), "column": columns},
            attrs={"score": label},
        )

    def _row(self, name: str, group: xr.Dataset) -> dict[str, tuple[float, int, int]]:
        """Of each column, the mean score and the numbers of cells in it and left out of it."""
        c = self.config
        if not any("cell" in variable.dims for variable in group.data_vars.values()):
            group = group.expand_dims(cell=[0])  # the scores of decisions
        others = [dim for dim in sweep_dims(group) if dim != c.columns]
        if others:
            tree = chosen(
                xr.DataTree.from_dict({f"/{name or 'all'}": group}),
                others,
                c.best_by,
                largest=c.largest,
            )
            group = groups(tree)[name or "all"]
        if "cell" not in group[c.score].dims:  # one score for the whole recording
            group = group.drop_dims("cell").drop_vars("cell", errors="ignore")
            group = group.expand_dims(cell=[0])
        swept = c.columns in sweep_dims(group)
        row = {}
        for column in group[c.columns].values.tolist() if swept else ["all"]:
            one = group.sel({c.columns: column}) if swept else group
            # Cells of other recordings are NaN in all variables.
            scores = one.drop_vars("reason", errors="ignore").data_vars.values()
            there = np.any([v.notnull().values for v in scores if v.dims == ("cell",)], axis=0)
            reason = one["reason"].values if "reason" in one else np.full(there.shape, "")
            there &= reason != NOT_RECORDED
            values, reason = one[c.score].values[there].astype(float), reason[there]
            missing = np.isnan(values)
            counted = ~missing | (reason == NOT_PREDICTED)
            if c.score in CORRELATIONS:
                values[missing & (reason == CONSTANT_PREDICTION)] = 0
                counted |= reason == CONSTANT_PREDICTION
            number = int(counted.sum())
            mean = float(values[counted].mean()) if number else np.nan
            row[str(column)] = (mean, number, int((~counted).sum()))
        return row

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        table = result.to_dataset()
        columns = [str(c) for c in table["column"].values]
        figure = Figure(figsize=(2.5 + 1.5 * len(columns), 3.4), layout="constrained")
        axis = figure.subplots()
        width = 0.8 / table.sizes["row"]
        for index, name in enumerate(table["row"].values):
            heights = np.append(table["value"].values[index], table["average"].values[index])
            places = np.arange(len(heights)) + (index + 0.5) * width - 0.4
            known = np.where(np.isfinite(heights), heights, 0)
            axis.bar(places, known, width, label=str(name), color=f"C{index}")
            for place, height in zip(places, heights, strict=True):
                if not np.isfinite(height):
                    axis.annotate(
                        f"{height:g}", (place, 0), ha="center", va="bottom", rotation=90, fontsize=7
                    )
        axis.set_xticks(range(len(columns) + 1), [*columns, "average"])
        axis.set(xlabel=self.config.columns, ylabel=table.attrs["score"])
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return figure

    def caption(self, result: xr.DataTree) -> str:
        table = result.to_dataset()
        best = int(table["average"].fillna(-np.inf).values.argmax())
        left_out = int(table["without_score"].max("row").sum())
        return (
            f"Mean over cells of the {table.attrs['score']} on the test frames. The average is "
            f"over the cells of all columns; {table['row'].values[best]} has the highest, "
            f"{float(table['average'][best]):.2f}."
            + f" {left_out} recorded cells have no score and are left out."
            * (left_out > 0)
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        table = result.to_dataset()
        frame: pd.DataFrame = table["value"].to_pandas()
        frame["average"] = table["average"].values
        return frame.rename_axis("model").rename_axis(None, axis=1).reset_index()
