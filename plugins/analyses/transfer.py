"""Each cell's model on the recordings of the other cells (Yan et al. 2020, Figs 7, 8, 9d-g)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import (
    Analysis,
    Config,
    FittedModel,
    UserError,
    full_history,
    groups,
    mean_over_repeats,
    mean_response,
    sweep_dims,
)
from retinakit.report import to_hertz
from retinakit.scores import (
    CONSTANT_PREDICTION,
    NOT_PREDICTED,
    checked,
    correlation,
    correlation_ceiling,
    reason,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TransferConfig(Config):
    """Options of the rates that are kept and shown. Scores are of the whole test."""

    traces: int = Field(4, ge=0, description="Number of cells whose rates are drawn; 0: none.")
    start: int = Field(
        0, ge=0, description="First frame, counted among the test frames with a full history."
    )
    frames: int = Field(300, ge=1, description="Number of frames of the rates.")


class Transfer(Analysis):
    """Correlation of the model of each cell with the response of every other cell.

    A model is applied to the test stimulus of another cell's recording, which may be cropped around
    that cell's receptive field and, for Version I, filtered with that cell's temporal filter. So a
    Version I model transfers its spatial filters and nonlinearity, and a Version II model its
    temporal filters as well.

    A family is the set of models that one step fits to the points of a dataset's sweep. A step with
    a sweep of its own has one family for each point of that sweep, and several steps of one model
    each are one family.

    The result has `correlation (family, data_of, model_of)` with the mean response;
    `correlation_rate`, the same with the true rate where it is known; with repeats, the noise
    `ceiling (family, data_of)` and `normalised_correlation` = correlation / ceiling; `mean_self`
    and `mean_transfer (family)`, the means on and off the diagonal of `correlation_rate`, or else
    of `correlation`; `best_of_row` and `best_of_column (family)`, the number of rows and columns in
    which the diagonal is largest; and the rates `rate_model (family, data_of, model_of, frame)` and
    `rate_data (family, data_of, frame)` in spikes per bin. If a recording's cell has no score,
    `reason (family, data_of)` says why. A constant prediction has correlation 0. The means leave
    out cells without a score of any model, and are NaN if a single prediction is missing.

    Raises:
        UserError: if there are fewer than two models, or a recording has several cells.

    Example:
        >>> from types import SimpleNamespace
        >>> from retinakit.testing import SmallModel, small_recording
        >>> members = []
        >>> for cell in (0, 1):
        ...     recording, model = small_recording(cells=1, seed=cell), SmallModel()
        ...     _ = model.fit(recording)
        ...     source = SimpleNamespace(
        ...         model=lambda model=model: model, recording=lambda data=recording: data
        ...     )
        ...     members.append(FittedModel("small", {"cell": cell}, source, {"cell": cell}))
        >>> result = Transfer.with_options(frames=40).run(members)
        >>> result["correlation"].dims, result["model_of"].values.tolist()
        (('family', 'data_of', 'model_of'), ['cell 0', 'cell 1'])
    """

    Config = TransferConfig
    quick: ClassVar[dict[str, Any]] = {"frames": 40}

    def run(self, models: list[FittedModel]) -> xr.Dataset:
        families = _families(models)
        if len(next(iter(families.values()))) < 2:
            raise UserError(
                "transfer needs models of two cells or more and has one; sweep the dataset over "
                "its cells"
            )
        labels = list(dict.fromkeys(label for family in families.values() for label in family))
        found = [self._matrix(family) for family in families.values()]
        known = [name for name in found[0] if all(name in one for one in found)]
        whole = [one[known].reindex(model_of=labels, data_of=labels) for one in found]
        result = xr.concat(whole, "family", join="inner").assign_coords(family=list(families))
        own, others = _diagonal(result[_headline(result)])
        without = [
            result[_headline(result)].transpose("family", "model_of", "data_of").isnull().all(dim)
            for dim in ("data_of", "model_of")
        ]
        lost = without[0].values[:, :, None] | without[1].values[:, None]
        same = np.eye(lost.shape[1], dtype=bool)
        rivals = np.nan_to_num(others, nan=-np.inf)
        complete = ~(result["reason"] == NOT_PREDICTED).any("data_of").values
        own_kept = ~np.diagonal(lost, axis1=1, axis2=2)
        return result.assign(
            mean_self=("family", np.where(complete, _mean(own, own_kept), np.nan)),
            mean_transfer=("family", np.where(complete, _mean(others, ~(lost | same)), np.nan)),
            best_of_row=("family", (own > rivals.max(2)).sum(1)),
            best_of_column=("family", (own > rivals.max(1)).sum(1)),
        )

    def _matrix(self, family: dict[str, FittedModel]) -> xr.Dataset:
        """Scores and rates of every model of a family on every recording of the family."""
        columns = []
        for label, member in family.items():
            test = member.data["test"].to_dataset()
            if test.sizes["cell"] != 1:
                raise UserError(
                    f"the recording of {label} has {test.sizes['cell']} cells and transfer takes "
                    "models of one cell each; sweep the dataset's option cell"
                )
            columns.append(self._column(family, test.isel(cell=0, drop=True)))
        joined: xr.Dataset = xr.concat(columns, "data_of", join="inner")
        return joined.assign_coords(data_of=list(family))

    def _column(self, family: dict[str, FittedModel], test: xr.Dataset) -> xr.Dataset:
        """Scores and rates of all models on the test of one cell."""
        models = [member.model for member in family.values()]
        each = [mean_over_repeats(model.predict(test)).isel(cell=0) for model in models]
        predicted = xr.concat([one.drop_vars("cell") for one in each], "model_of").astype(float)
        predicted = predicted.assign_coords(model_of=list(family))
        lags = max(member.model.lags for member in family.values())
        known = full_history(test["segment"], lags)
        # A missing prediction is infinite, which gives the score NaN with its reason.
        predicted = checked(predicted, lags)
        predicted, test = predicted.isel(frame=known), test.isel(frame=known)
        mean = mean_response(test).astype(float)
        why = reason(predicted, mean)
        # What concerns the response is the same for all models.
        first = why.isel(model_of=0, drop=True)
        lacking = (why == NOT_PREDICTED).any()
        column = {
            "correlation": _correlation(predicted, mean),
            "reason": xr.where(
                lacking, NOT_PREDICTED, xr.where(first == CONSTANT_PREDICTION, "", first)
            ),
        }
        if "rate" in test:
            column["correlation_rate"] = _correlation(predicted, test["rate"])
        if test.sizes.get("repeat", 1) > 1:
            column["ceiling"] = correlation_ceiling(test["response"].astype(float))
            column["normalised_correlation"] = column["correlation"] / column["ceiling"]
        shown = slice(self.config.start, self.config.start + self.config.frames)
        column |= {
            "rate_model": predicted.isel(frame=shown),
            "rate_data": mean.isel(frame=shown),
        }
        interval = test.attrs["frame_interval"]
        result = xr.Dataset(column, attrs={"frame_interval": interval})
        frame = np.arange(result.sizes["frame"])
        return result.drop_vars("segment").assign_coords(
            frame=frame, time=("frame", frame * interval, {"units": "s"})
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        (group,) = groups(result).values()
        group = group.isel(dict.fromkeys(sweep_dims(group), 0))
        name, families = _headline(group), group["family"].values.tolist()
        own, others = _diagonal(group[name])
        known = group[name].notnull().any()
        bounds = (float(group[name].min()), float(group[name].max())) if known else (0.0, 1.0)
        shown = min(self.config.traces, group.sizes["data_of"])
        columns = 3 if len(families) == 1 else 4
        heights = [3.5] * len(families) + ([0.95 * shown + 2.4] if shown else [])
        figure = Figure(figsize=(3.5 * columns, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for index, family in enumerate(families):
            axes = parts[index].subplots(1, columns, width_ratios=[1.25] + [1] * (columns - 1))
            _draw_matrix(axes[0], group[name].isel(family=index), bounds)
            _draw_scatter(axes[1], own[index], others[index], "C2", bounds)
            _draw_scatter(axes[2], own[index], others[index].T, "C5", bounds)
            axes[0].set_title(family)
            axes[1].set(
                title="each model", xlabel="score on its own cell", ylabel="score on other cells"
            )
            axes[2].set(
                title="each cell", xlabel="score of its own model", ylabel="score of other models"
            )
            if index:
                _draw_scatter(axes[3], others[0].ravel(), others[index].reshape(-1, 1), "k", bounds)
                _draw_scatter(axes[3], own[0], own[index][:, None], "C1", bounds)
                axes[3].set(title="families compared", xlabel=families[0], ylabel=family)
            elif columns == 4:
                axes[3].set_axis_off()
        if shown:
            _draw_traces(parts[-1], group.isel(family=0), shown, name)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        (group,) = groups(result).values()
        shown = min(self.config.traces, group.sizes["data_of"])
        several = group.sizes["family"] > 1
        return (
            f"{_NAMES[_headline(group)].capitalize()} of each cell's model (rows) on each cell's "
            "recording (columns), and the off-diagonal scores against the diagonal ones, of each "
            "model and of each cell. The line is equality."
            + (
                " Last: scores of the other families against the first; the diagonal is in colour."
                * several
            )
            + (
                f" Below, for the first {shown} cells{' of the first family' * several}: the mean "
                "response (grey) and the prediction of each model (rows), and their scores."
            )
            * bool(shown)
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        (group,) = groups(result).values()
        group = group.isel(dict.fromkeys(sweep_dims(group), 0))
        cells = group[_headline(group)].notnull().any("model_of").sum("data_of").values
        return pd.DataFrame(
            {
                "models": group["family"].values,
                "cells": cells,
                "mean score, own model": group["mean_self"].values,
                "mean score, other models": group["mean_transfer"].values,
                "rows where the own cell is best": group["best_of_row"].values,
                "columns where the own model is best": group["best_of_column"].values,
            }
        )


_NAMES = {"correlation_rate": "correlation with the true rate", "correlation": "correlation"}


def _families(models: list[FittedModel]) -> dict[str, dict[str, FittedModel]]:
    """The models by the name of their family and the label of their recording."""
    families: dict[str, dict[str, FittedModel]] = {}
    for member in models:
        own = {k: v for k, v in member.coords.items() if k not in member.data_coords}
        family = ", ".join([member.name, *(f"{k} {v}" for k, v in own.items())])
        label = ", ".join(f"{k} {v}" for k, v in member.data_coords.items())
        families.setdefault(family, {})[label] = member
    if all(len(members) == 1 for members in families.values()):
        singles = {family: next(iter(members.values())) for family, members in families.items()}
        return {"models": singles}
    return families


def _headline(result: xr.Dataset) -> str:
    """The name of the correlation with the true rate if it is known, else with the response."""
    return "correlation_rate" if "correlation_rate" in result else "correlation"


def _diagonal(matrix: xr.DataArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """The diagonals (family, cell), and the matrices with NaN on their diagonals."""
    values = matrix.transpose("family", "model_of", "data_of").values
    same = np.eye(values.shape[1], dtype=bool)
    return np.diagonal(values, axis1=1, axis2=2), np.where(same, np.nan, values)


def _correlation(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """The correlation, 0 for a constant prediction."""
    constant = reason(predicted, observed) == CONSTANT_PREDICTION
    return correlation(predicted, observed).where(~constant, 0)


def _mean(values: NDArray[Any], kept: NDArray[Any]) -> NDArray[Any]:
    """The mean (family) of the values (family, ...) that are kept, NaN where there are none."""
    over = tuple(range(1, values.ndim))
    total, count = np.where(kept, values, 0).sum(over), kept.sum(over)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _draw_matrix(axis: Any, matrix: xr.DataArray, bounds: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    values = matrix.transpose("model_of", "data_of").values
    image = axis.imshow(values, cmap="viridis", vmin=bounds[0], vmax=bounds[1])
    labels = matrix["data_of"].values
    turned = 90 if max(map(len, labels)) > 3 else 0
    axis.set_xticks(range(len(labels)), labels, rotation=turned, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set(xlabel="recording of", ylabel="model of")
    for i in range(len(labels)):
        axis.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, ec="C1", lw=1.5))
    if len(labels) <= 6:
        for (row, column), value in np.ndenumerate(values):
            dark = value < np.mean(bounds)
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    axis.figure.colorbar(image, ax=axis, shrink=0.8, label="correlation")


def _draw_scatter(
    axis: Any, own: NDArray[Any], values: NDArray[Any], color: str, bounds: tuple[float, float]
) -> None:
    """Draws each row of `values` against the entry of `own`, and the line of equality."""
    axis.plot(np.repeat(own, values.shape[1]), values.ravel(), "o", ms=4, color=color, alpha=0.7)
    axis.axline((0, 0), slope=1, color="0.7", lw=0.9, zorder=0)
    margin = 0.05 * (bounds[1] - bounds[0])
    limits = (bounds[0] - margin, bounds[1] + margin)
    axis.set(xlim=limits, ylim=limits, aspect="equal")


def _draw_traces(part: Any, group: xr.Dataset, shown: int, name: str) -> None:
    """Draws rates of the first models (rows) on the first recordings (columns), and scores."""
    group = group.isel(model_of=slice(shown), data_of=slice(shown))
    above, below = part.subfigures(2, 1, height_ratios=[0.95 * shown, 2.0])
    axes = above.subplots(shown, shown, sharex=True, sharey="col", squeeze=False)
    bins, unit = to_hertz(group["rate_data"], group.attrs["frame_interval"])
    labels = group["data_of"].values
    scores = below.subplots()
    for (row, column), axis in np.ndenumerate(axes):
        color, panel = f"C{row}", group.isel(model_of=row, data_of=column)
        axis.plot(group["time"], panel["rate_data"] * bins, color="0.6", lw=0.8)
        axis.plot(group["time"], panel["rate_model"] * bins, color=color, lw=1.0)
        score = float(panel[name])
        axis.set_title(f"{score:.2f}", fontsize=8, pad=2, loc="right")
        axis.tick_params(labelsize=7)
        place = column * (shown + 1) + row
        own = {"mfc": color} if row == column else {"mfc": "white"}
        scores.plot(place, score, "o", color=color, **own)
        if row == 0:
            axis.set_title(f"data of {labels[column]}", fontsize=9, loc="left")
        if column == 0:
            axis.set_ylabel(f"model of\n{labels[row]} ({unit})", fontsize=8, color=color)
        if row == shown - 1:
            axis.set_xlabel("time (s)", fontsize=8)
    middles = np.arange(shown) * (shown + 1) + (shown - 1) / 2
    scores.set_xticks(middles, [f"data of {label}" for label in labels])
    scores.set(ylabel=_NAMES[name])
