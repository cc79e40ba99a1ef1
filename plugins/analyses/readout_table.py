"""A table of one score, models against recordings (Klindt et al. 2017, Table 1)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, UserError, groups, sweep_dims
from retinakit.report import chosen
from retinakit.scores import NOT_RECORDED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    validation score is used for each recording. A cell whose score is NaN, such as the correlation
    of a constant prediction, counts as 0; a cell that was not recorded is left out. The result has
    `value (row, column)`, the mean over the cells of a recording; `cells (row, column)`, their
    number; and `average (row)`, the mean over the cells of all recordings.

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
        rows: dict[str, dict[str, tuple[float, int]]] = {}
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
        cells = np.zeros(value.shape, np.int64)
        for i, row in enumerate(rows.values()):
            for column, (mean, number) in row.items():
                value[i, columns.index(column)], cells[i, columns.index(column)] = mean, number
        average = np.nansum(value * cells, 1) / np.maximum(cells.sum(1), 1)
        return xr.Dataset(
            {
                "value": (("row", "column"), value),
                "cells": (("row", "column"), cells),
                "average": ("row", average),
            },
            coords={"row": list(rows), "column": columns},
            attrs={"score": label},
        )

    def _row(self, name: str, group: xr.Dataset) -> dict[str, tuple[float, int]]:
        """Mean score and number of cells of each column."""
        c = self.config
        if "cell" not in group[c.score].dims:  # one score for the whole recording
            group = group.expand_dims(cell=[0])
        others = [dim for dim in sweep_dims(group) if dim != c.columns]
        if others:
            tree = chosen(
                xr.DataTree.from_dict({f"/{name or 'all'}": group}),
                others,
                c.best_by,
                largest=c.largest,
            )
            group = groups(tree)[name or "all"]
        swept = c.columns in sweep_dims(group)
        row = {}
        for column in group[c.columns].values.tolist() if swept else ["all"]:
            one = group.sel({c.columns: column}) if swept else group
            # Cells of other recordings are NaN in all variables.
            scores = one.drop_vars("reason", errors="ignore").data_vars.values()
            there = np.any([v.notnull().values for v in scores if v.dims == ("cell",)], axis=0)
            if "reason" in one:
                there &= one["reason"].values != NOT_RECORDED
            values = one[c.score].fillna(0).values[there]
            row[str(column)] = (float(values.mean()) if len(values) else np.nan, len(values))
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
            axis.bar(places, heights, width, label=str(name), color=f"C{index}")
        axis.set_xticks(range(len(columns) + 1), [*columns, "average"])
        axis.set(xlabel=self.config.columns, ylabel=table.attrs["score"])
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return figure

    def caption(self, result: xr.DataTree) -> str:
        table = result.to_dataset()
        best = int(table["average"].values.argmax())
        return (
            f"Mean over cells of the {table.attrs['score']} on the test frames. The average is "
            f"over the cells of all columns; {table['row'].values[best]} has the highest, "
            f"{float(table['average'][best]):.2f}."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        table = result.to_dataset()
        frame: pd.DataFrame = table["value"].to_pandas()
        frame["average"] = table["average"].values
        return frame.rename_axis("model").rename_axis(None, axis=1).reset_index()
