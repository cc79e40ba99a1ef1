"""Prediction of a model with units silenced, or with only some units kept (Murray et al.)."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retinakit import scores as metrics
from retinakit.contracts import (
    MOST_COMBINATIONS,
    Analysis,
    Config,
    Model,
    Progress,
    UserError,
    cases,
    full_history,
    groups,
    label_of_units,
    mean_response,
    other_units,
    points,
    silent,
    sweep_dims,
    unit_combinations,
    units_by_layer,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK_BYTES = 2**25
"""Size in bytes of the predictions that are scored together."""

CASES = 4
"""Largest number of models and points of sweeps that are drawn."""


class LesionConfig(Config):
    """Options of the units that are silenced or kept, and of the score."""

    layers: list[str] | None = Field(
        None, min_length=1, description="Layers whose units are chosen; by default all layers."
    )
    silence: int | dict[str, int] | None = Field(
        None,
        description="Number of units that are silenced together: 1 (the default) for each unit, 2 "
        "for each pair, or the number in each layer, such as {bipolar: 1, amacrine: 1}.",
    )
    keep: int | dict[str, int] | None = Field(
        None,
        description="Number of units of the layers that are kept while all others are silenced, as "
        "one number or the number in each layer. Not with 'silence'.",
    )
    score: Literal["auto", "accuracy", "correlation", "bits_per_spike"] = Field(
        "auto",
        description="Score of the predictions; by default accuracy if the responses are decisions "
        "(one class of several) and correlation otherwise.",
    )
    split: Literal["train", "validation", "test"] = Field(
        "test", description="Split on which the predictions are scored."
    )
    most: int = Field(
        MOST_COMBINATIONS, ge=1, description="Largest number of combinations; more are refused."
    )
    shown: int = Field(
        20, ge=1, description="Number of combinations in the table and in the picture of many."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "LesionConfig":
        if self.silence is not None and self.keep is not None:
            raise ValueError("choose one of 'silence' and 'keep'")
        chosen = self.number
        numbers = chosen.values() if isinstance(chosen, dict) else [chosen]
        if any(number < 0 for number in numbers) or sum(numbers) < 1:
            raise ValueError("'silence' and 'keep' need 1 unit or more")
        if isinstance(chosen, dict) and self.layers is not None:
            raise ValueError(
                "'layers' is for one number of units; with a number in each layer, leave it out"
            )
        return self

    @property
    def number(self) -> int | dict[str, int]:
        """The number of units that are chosen together, or the number in each layer."""
        chosen = self.silence if self.keep is None else self.keep
        return 1 if chosen is None else chosen


class Lesion(Analysis):
    """Scores of a model in which units are silenced, without fitting it again.

    All combinations of a number of units are examined: each unit, each pair, or more. With `keep`,
    the chosen units are kept and the other units of the layers are silenced. For Murray et al.'s
    search for the best model of four cell types, set `keep: 4`, or `keep: {bipolar: 1, amacrine: 1,
    ganglion: 2}`. The combinations are predicted by `Model.lesions`.

    The result has `score (lesion, cell)`, the intact model's score `intact (cell)`, and `drop =
    intact - score`. The accuracy of decisions has no dimension `cell`; `low` and `high (lesion)`
    are then its 95 % confidence interval (Wilson), and `decisions` their number. `chosen (lesion,
    unit)` is 1 for the units that are silenced (with `keep`: kept), and the labels `lesion` name
    them. The predictions are scored in frames with a full history. A constant prediction has
    correlation 0. The score of a cell without responses is NaN, and `reason (cell)` says why.

    Raises:
        UserError: if the model has no layers or not the given ones, there are fewer units than are
            to be chosen or more combinations than `most`, or the responses do not suit the score.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=3, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = Lesion.with_options(silence=2).run(model, recording)
        >>> result["lesion"].values.tolist()
        ['layer1 0, 1', 'layer1 0, 2', 'layer1 1, 2']
        >>> result["drop"].dims
        ('lesion', 'cell')
    """

    Config = LesionConfig

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        split = data[c.split].to_dataset()
        numbers = self._layers(model, split)
        units = [(layer, unit) for layer, number in numbers.items() for unit in range(number)]
        chosen = unit_combinations(numbers, c.number, c.most)
        silent_units = partial(other_units, numbers) if c.keep is not None else units_by_layer
        lesions = [{}, *map(silent_units, chosen)]
        scored = _Scored(c.score, split, model.lags)
        result = scored.scores(model.lesions(split, lesions), len(lesions), progress)
        intact = result["score"].isel(lesion=0, drop=True)
        result = result.isel(lesion=slice(1, None)).assign_coords(
            lesion=[label_of_units(one) for one in chosen],
            unit=[label_of_units([unit]) for unit in units],
        )
        place = {unit: index for index, unit in enumerate(units)}
        table = np.zeros((len(chosen), len(units)), np.int8)
        for row, one in enumerate(chosen):
            table[row, [place[unit] for unit in one]] = 1
        drop = intact - result["score"]
        result = result.assign(intact=intact, drop=drop.transpose("lesion", ...))
        result["chosen"] = (("lesion", "unit"), table)
        if "cell" in intact.dims and (scored.reason != "").any():
            result["reason"] = scored.reason
        for name, text in {"score": "", "intact": "intact model: ", "drop": "drop in "}.items():
            result[name].attrs["long_name"] = text + LABELS[scored.name]
        return result

    def _layers(self, model: Model, split: xr.Dataset) -> dict[str, int]:
        """The numbers of units of the chosen layers."""
        number = self.config.number
        names = list(number) if isinstance(number, dict) else self.config.layers
        for layer in names or model.layers() or [""]:  # a model without layers is refused
            model.check_layer(layer)
        of_layer = model.units(split)
        return {layer: n for layer, n in of_layer.items() if names is None or layer in names}

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = [(label, _mean_over_cells(case)) for label, case in islice(cases(result), CASES)]
        draw, width, height = {1: (_draw_units, 7.5, 2.8), 2: (_draw_pairs, 5.6, 4.6)}.get(
            _size(shown[0][1]),
            (_draw_combinations, 8.5, 1.4 + 0.22 * min(self.config.shown, len(shown[0][1].lesion))),
        )
        figure = Figure(figsize=(width, height * len(shown)), layout="constrained")
        parts = figure.subfigures(len(shown), 1, squeeze=False)[:, 0]
        kept = self.config.keep is not None
        for part, (label, case) in zip(parts, shown, strict=True):
            draw(part, case, kept, self.config.shown)
            if len(shown) > 1:
                part.suptitle(label.replace("\n", ", "), fontsize=10)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        first = _mean_over_cells(next(cases(result))[1])
        size = _size(first)
        of_cells = any("cell" in group["score"].dims for group in groups(result).values())
        score = str(first["score"].attrs.get("long_name", "score"))
        what = score.capitalize() + f" on the {c.split} frames" + ", mean over cells" * of_cells
        action = "kept, with all others silent" if c.keep is not None else "silenced"
        line = " The dashed line is the intact model."
        if size == 1:
            bars = " Error bars are 95 % confidence intervals." if "low" in first else ""
            return f"{what}, with each unit {action}.{line}{bars}"
        if size == 2:
            return (
                f"{what}, with each pair of units {action}; the intact model has "
                f"{float(first['intact']):.3f}."
            )
        which = "highest" if c.keep is not None else "lowest"
        return (
            f"{what}, with {size} units {action}: the {which} scores of the "
            f"{int(first['score'].count()):,} combinations, and the distribution of all.{line}"
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        kept = self.config.keep is not None
        frames = []
        for name, group in groups(result).items():
            group = _mean_over_cells(group)
            columns = [name for name in COLUMNS if name in group]
            frame = group[columns].to_dataframe().reset_index().dropna(subset=["score"])
            frame.insert(0, "model", name)
            swept = ["model", *(dim for dim in sweep_dims(group) if dim in frame)]
            frame = frame.sort_values("drop", ascending=kept, kind="stable")
            frame = frame.groupby(swept, sort=False).head(self.config.shown)
            frames.append(frame.sort_values(swept, kind="stable"))
        table = pd.concat(frames, ignore_index=True)
        index = [column for column in points(result) if column in table]
        table = table[[*index, "lesion", *(name for name in COLUMNS if name in table)]]
        return table.rename(columns={"lesion": "kept" if kept else "silenced"})


COLUMNS = ("score", "low", "high", "intact", "drop")
LABELS = {
    "accuracy": "accuracy",
    "correlation": "correlation with the response",
    "bits_per_spike": "bits per spike",
}


class _Scored:
    """Scores of many predictions of one split.

    Args:
        score: the option.
        split: with the responses.
        lags: of the model.
    """

    def __init__(self, score: str, split: xr.Dataset, lags: int):
        self.lags, response = lags, split["response"]
        task = metrics.is_task(response)
        self.name = ("accuracy" if task else "correlation") if score == "auto" else score
        if self.name == "accuracy" and not task:
            raise UserError(
                "accuracy needs responses that are decisions, 1 for one class and 0 for the "
                "others; choose another score"
            )
        if self.name == "bits_per_spike" and bool((response < 0).any()):
            raise UserError(
                "bits per spike need spike counts and some responses are negative; set score: "
                "correlation"
            )
        others = [dim for dim in response.dims if dim != "frame"]
        known = response.notnull().any(others).values & full_history(split["segment"], lags)
        self.frames = np.flatnonzero(known)
        if len(self.frames) == 0:
            raise UserError(
                f"no response is known in a frame with a full history of {lags} frames; choose "
                "another split"
            )
        observed = response if self.name == "bits_per_spike" else mean_response(split)
        self.observed = observed.isel(frame=self.frames).astype(float)
        # The reason of a cell that was not recorded does not depend on the prediction.
        mean = mean_response(split).isel(frame=self.frames).astype(float)
        self.reason = metrics.reason(mean, mean)
        self.size = max(1, BLOCK_BYTES // (8 * len(self.frames) * split.sizes["cell"]))

    def scores(
        self, predictions: Iterator[NDArray[Any]], number: int, progress: Progress
    ) -> xr.Dataset:
        """The scores (lesion, cell) of predictions, each ([repeat,] frame, cell)."""
        block: list[NDArray[Any]] = []
        parts = []
        for done, prediction in enumerate(predictions, start=1):
            shown = prediction[..., self.frames, :]
            block.append(shown if shown.ndim == 2 else np.nanmean(shown, 0))
            if len(block) == self.size or done == number:
                parts.append(self._of_block(np.stack(block, -1)))
                block = []
                progress(done, number)
        result: xr.Dataset = xr.concat(parts, "lesion", data_vars="minimal")
        return result.transpose("lesion", ...)

    def _of_block(self, values: NDArray[Any]) -> xr.Dataset:
        """The scores of predictions (frame, cell, lesion)."""
        cells = {"cell": self.observed["cell"].variable}
        predicted = xr.DataArray(values.astype(float), cells, ("frame", "cell", "lesion"))
        predicted = predicted.where(predicted.notnull(), np.inf)  # missing in a scored frame
        observed = self.observed.drop_vars(["segment", "time"], errors="ignore")
        if self.name == "accuracy":
            score = metrics.accuracy(predicted, observed)
            decisions = observed.sizes["frame"]
            low, high = metrics.binomial_interval(score.values, decisions)
            bounds = {"low": ("lesion", low), "high": ("lesion", high)}
            return xr.Dataset({"score": score, **bounds, "decisions": decisions})
        if self.name == "bits_per_spike":
            return xr.Dataset({"score": metrics.bits_per_spike(predicted, observed)})
        constant = metrics.reason(predicted, observed) == metrics.CONSTANT_PREDICTION
        return xr.Dataset({"score": metrics.correlation(predicted, observed).where(~constant, 0)})


def _layers_and_numbers(units: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The layer and the index of each unit, from names such as "bipolar 4"."""
    parts = [str(unit).rsplit(" ", 1) for unit in units]
    return np.array([layer for layer, _ in parts]), np.array([int(one) for _, one in parts])


def _size(case: xr.Dataset) -> int:
    """The number of units that are chosen together."""
    return int(case["chosen"].sum("unit").max())


def _mean_over_cells(group: xr.Dataset) -> xr.Dataset:
    """The scores averaged over cells, unless the cells are points of the sweep."""
    if "cell" not in group.dims or "cell" in sweep_dims(group):
        return group
    return group.drop_vars("reason", errors="ignore").mean("cell", keep_attrs=True)


def _spread(case: xr.Dataset) -> Any:
    """The lengths (2, lesion) of error bars, or None if the scores have no interval."""
    if "low" not in case:
        return None
    return np.stack([case["score"] - case["low"], case["high"] - case["score"]]).clip(0)


def _draw_units(part: Any, case: xr.Dataset, kept: bool, shown: int) -> None:
    """Bars of the scores with each unit silenced or kept, in colours of the layers."""
    axis = part.subplots()
    case = case.isel(lesion=case["score"].notnull().values)
    unit = case["unit"].values[case["chosen"].argmax("unit").values]
    layer, number = _layers_and_numbers(unit)
    colors = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(layer))}
    gaps = np.cumsum(np.r_[0, layer[1:] != layer[:-1]])
    place = np.arange(len(unit)) + gaps
    axis.bar(
        place, case["score"], yerr=_spread(case), color=[colors[one] for one in layer],
        width=0.8, alpha=0.8, error_kw={"lw": 1, "ecolor": "0.3"},
    )  # fmt: skip
    axis.axhline(float(case["intact"]), color="k", ls="--", lw=0.9)
    axis.set_xticks(place, number, fontsize=8 if len(unit) < 40 else 5)
    for name in colors:
        here = place[layer == name]
        if len(here):
            axis.text(
                here.mean(), -0.13, name, ha="center", va="top", color=colors[name],
                transform=axis.get_xaxis_transform(),
            )  # fmt: skip
    axis.set_ylabel(case["score"].attrs.get("long_name", "score"))
    axis.set_title(f"each unit {'kept' if kept else 'silenced'}", fontsize=10)


def _draw_pairs(part: Any, case: xr.Dataset, kept: bool, shown: int) -> None:
    """The matrix of the scores with each pair of units silenced or kept."""
    axis = part.subplots()
    case = case.isel(lesion=case["score"].notnull().values)
    chosen = case["chosen"].values > 0
    used = np.flatnonzero(chosen.any(0))
    matrix = np.full((len(used), len(used)), np.nan)
    first, second = chosen.argmax(1), chosen.shape[1] - 1 - chosen[:, ::-1].argmax(1)
    rows, columns = np.searchsorted(used, first), np.searchsorted(used, second)
    matrix[rows, columns] = matrix[columns, rows] = case["score"].values
    layers, _ = _layers_and_numbers(case["unit"].values[used])
    edges = np.flatnonzero(layers[1:] != layers[:-1]) + 0.5
    image = axis.imshow(matrix, cmap="viridis")
    for edge in edges:
        axis.axhline(edge, color="w", lw=2)
        axis.axvline(edge, color="w", lw=2)
    size = 8 if len(used) < 30 else 5
    names = [str(one) for one in case["unit"].values[used]]
    axis.set_xticks(range(len(used)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(used)), names, fontsize=size)
    axis.set_title(f"pairs of units {'kept' if kept else 'silenced'}", fontsize=10)
    bar = part.colorbar(image, ax=axis, shrink=0.85)
    bar.set_label(case["score"].attrs.get("long_name", "score"))


def _draw_combinations(part: Any, case: xr.Dataset, kept: bool, shown: int) -> None:
    """Bars of the highest (silenced: lowest) scores, and the histogram of all scores."""
    best, all_of_them = part.subplots(1, 2, width_ratios=[1.2, 1])
    case = case.isel(lesion=case["score"].notnull().values)
    sign = -1 if kept else 1
    order = np.argsort(sign * case["score"].values, kind="stable")[:shown][::-1]
    top = case.isel(lesion=order)
    place = np.arange(len(order))
    best.barh(
        place, top["score"], xerr=_spread(top), color="C0", alpha=0.8,
        error_kw={"lw": 1, "ecolor": "0.3"},
    )  # fmt: skip
    best.set_yticks(place, top["lesion"].values, fontsize=8)
    score = case["score"].attrs.get("long_name", "score")
    best.set(xlabel=score, title="kept: highest scores" if kept else "silenced: lowest scores")
    all_of_them.hist(case["score"], bins=min(40, 5 + case.sizes["lesion"] // 10), color="0.6")
    all_of_them.set(xlabel=score, ylabel="combinations", title="all combinations")
    for axis in (best, all_of_them):
        axis.axvline(float(case["intact"]), color="k", ls="--", lw=0.9)
        axis.title.set_fontsize(10)
