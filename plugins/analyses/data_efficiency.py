"""Prediction against the amount of training data and its noise (Yan et al. 2020, Fig 6)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit import scores as metrics
from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    full_history,
    groups,
    mean_over_repeats,
    mean_response,
    points,
    sweep_dims,
)
from retinakit.report import curves, draw, draw_field, to_hertz
from retinakit.simulation import poisson_spikes
from retinakit.spikes import separate, sta

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "correlation": "correlation with\nthe response",
    "correlation_rate": "correlation with\nthe true rate",
}
LOSSES = {"train_loss": "-", "validation_loss": ":"}
NUMBERS = (*LABELS, *LOSSES, "frames", "spikes")
RATES: dict[str, dict[str, Any]] = {
    "true": {"color": "0.75", "lw": 3},
    "data": {"color": "0.4", "lw": 0.8},
    "model": {"color": "C0", "lw": 1.1},
}


class DataEfficiencyConfig(Config):
    """Options of the figure."""

    over: str = Field(
        "fraction", description="Name of the swept option that changes the training data."
    )
    examples: list[float] = Field(
        [],
        description="Values of the swept option for which rates and receptive fields are shown; by "
        "default the first, the middle and the last.",
    )
    start: int = Field(
        0, ge=0, description="First test frame with a full history of the example rates."
    )
    frames: int = Field(300, ge=1, description="Number of test frames of the example rates.")


class DataEfficiency(Analysis):
    """Prediction scores against the amount of training data.

    The result has, for each cell, `correlation` with the mean response of the test frames and
    `correlation_rate` with the true rate where it is known, the Poisson losses `train_loss` and
    `validation_loss` per bin (inf if a rate of 0 or less is predicted in a bin with a spike), the
    number of training `frames` and of `spikes` in them, and a `reason` where there is no
    correlation. For the examples in the figure it has the rates
    `rate_data`, `rate_model` and `rate_true (frame, cell)` in spikes per bin in a part of the test,
    and `field_data` and `field_model (cell, y, x)`, the spatial parts of the spike-triggered
    averages of the cell's training spikes and of Poisson spikes drawn from the model's prediction.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = DataEfficiency.with_options(frames=40).run(model, recording)
        >>> dict(result["rate_model"].sizes), int(result["frames"])
        ({'frame': 40, 'cell': 2}, 2000)
    """

    Config = DataEfficiencyConfig
    quick: ClassVar[dict[str, Any]] = {"frames": 40}
    axis: ClassVar[dict[str, Any]] = {"xlabel": "fraction of the training frames", "xscale": "log"}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        train, validation, test = (
            data[name].to_dataset() for name in ("train", "validation", "test")
        )
        fitted, held_out = (
            metrics.checked(model.predict(split), model.lags) for split in (train, validation)
        )
        predicted = metrics.checked(mean_over_repeats(model.predict(test)), model.lags)
        response = mean_response(test).astype(float)
        counted = train["response"].astype(float).where(fitted.notnull())
        result = xr.Dataset(
            {
                "correlation": metrics.correlation(predicted, response),
                "train_loss": metrics.poisson_loss(fitted, counted),
                "validation_loss": metrics.poisson_loss(
                    held_out, validation["response"].astype(float)
                ),
                "frames": train.sizes["frame"],
                "spikes": counted.sum([dim for dim in counted.dims if dim != "cell"]),
            }
        )
        reason = metrics.reason(predicted, response)
        if (reason != "").any():
            result["reason"] = reason
        known = np.flatnonzero(full_history(test["segment"], model.lags))
        shown = known[min(self.config.start, len(known) - 1) :][: self.config.frames]
        rates = {"data": response, "model": predicted}
        if "rate" in test:
            result["correlation_rate"] = metrics.correlation(predicted, test["rate"])
            rates["true"] = test["rate"]
        for name, rate in rates.items():
            result[f"rate_{name}"] = rate.isel(frame=shown).drop_vars("segment", errors="ignore")
        drawn = poisson_spikes(fitted.values, 1, self.seed)[0]
        sampled = train.assign(response=(fitted.dims, drawn, train["response"].attrs))
        for name, split in {"data": train, "model": sampled}.items():
            average = sta(split, model.lags)["sta"]
            if "channel" in average.dims:
                average = average.sum("channel")
            if model.lags == 1:  # there is no temporal filter, and the map keeps its sign
                result[f"field_{name}"] = average.isel(lag=0, drop=True)
            else:
                result[f"field_{name}"] = separate(average)["spatial"]
        result.attrs["frame_interval"] = test.attrs["frame_interval"]
        return result.assign_coords(frame=shown)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        over, result = self.config.over, _with_dimension(result, self.config.over)
        examples = self._examples(result)
        figure = Figure(figsize=(11, max(4.6, 1.45 * len(examples))), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.6], squeeze=False)[0]
        score, loss = left.subplots(2, 1, sharex=True)
        headline = _headline(result)
        drawn = curves(result, headline, over)
        draw(score, drawn, over)
        score.set_ylabel(LABELS[headline])
        if drawn.sizes["curve"] > 1:
            score.legend(frameon=False, fontsize=8)
        handles = []
        for name, style in LOSSES.items():
            draw(loss, curves(result, name, over), over, ls=style)
            handles += loss.plot([], [], color="0.3", ls=style, label=name.replace("_", " "))
        loss.legend(handles=handles, frameon=False, fontsize=8)
        loss.set(ylabel="Poisson loss", **self.axis)
        spikes = [int(example["spikes"]) for _, example in examples]
        if len(set(spikes)) > 1:
            top = score.twiny()
            top.set(xscale=score.get_xscale(), xlim=score.get_xlim())
            top.set_xticks([value for value, _ in examples], [f"{n:,}" for n in spikes])
            top.minorticks_off()
            top.set_xlabel("spikes")
        axes = right.subplots(len(examples), 3, squeeze=False, width_ratios=[4, 1, 1])
        for row, (value, example) in zip(axes, examples, strict=True):
            _draw_example(row, example, f"{over} {value:g}: r = {float(example[headline]):.2f}")
        for axis in axes[:-1, 0]:
            axis.tick_params(labelbottom=False)
        axes[-1, 0].set_xlabel("time in the test (s)")
        for axis, title in zip(axes[0, 1:], ("cell", "model"), strict=True):
            axis.set_title(title, fontsize=9)
        return figure

    def _examples(self, result: xr.DataTree) -> list[tuple[float, xr.Dataset]]:
        """The example points of the first swept model, at the first cell, seed and so on."""
        over = self.config.over
        group = next(g for g in groups(result).values() if over in sweep_dims(g))
        values = group[over].values
        wanted = self.config.examples or values[[0, len(values) // 2, -1]]
        places = dict.fromkeys(int(np.abs(values - value).argmin()) for value in wanted)
        first = dict.fromkeys([d for d in (*sweep_dims(group), "cell") if d != over], 0)
        return [(float(values[i]), group.isel(first | {over: i})) for i in places]

    def caption(self, result: xr.DataTree) -> str:
        over, by_model = self.config.over, groups(result)
        if not any(over in sweep_dims(group) for group in by_model.values()):
            return f"No model was swept over '{over}', so there is one point."
        return (
            f"Left: correlation on the test frames and Poisson loss against the "
            f"{self.axis['xlabel']}, mean and standard deviation over seeds if these were swept. "
            "Right: examples from the first model, cell and seed: rates of the cell (grey) and of "
            "the model (blue), and spatial receptive fields from the spikes of the cell and of the "
            "model in the training frames."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for model, group in groups(result).items():
            numbers = [name for name in NUMBERS if name in group]
            frame = group[numbers].to_dataframe().reset_index()
            frame.insert(0, "model", model)
            frames.append(frame[[*[p for p in points(result) if p in frame], *numbers]])
        return pd.concat(frames, ignore_index=True)


class NoiseRobustness(DataEfficiency):
    """Prediction scores against the noise in the training stimulus.

    The same as `DataEfficiency`, for models fitted to the dataset `noisy_stimulus`. The training
    loss is that on the noisy stimulus; validation and test have no noise.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = NoiseRobustness.with_options(frames=40).run(model, recording)
        >>> result["correlation"].dims
        ('cell',)
    """

    axis: ClassVar[dict[str, Any]] = {"xlabel": "fraction of the training images that is noise"}


def _headline(result: xr.DataTree) -> str:
    known = all("correlation_rate" in group for group in groups(result).values())
    return "correlation_rate" if known else "correlation"


def _with_dimension(result: xr.DataTree, over: str) -> xr.DataTree:
    """The result, with one point along the dimension `over` if no model was swept over it."""
    if any(over in sweep_dims(group) for group in groups(result).values()):
        return result
    return xr.DataTree.from_dict(
        {
            f"/{name}": group.expand_dims({over: [1.0]}).assign_attrs(
                sweep=",".join([*sweep_dims(group), over])
            )
            for name, group in groups(result).items()
        }
    )


def _draw_example(row: Any, example: xr.Dataset, title: str) -> None:
    """Draws rates, and receptive fields of the cell and of the model."""
    rates, *fields = row
    time = example["time"].values
    bins, label = to_hertz(example["rate_data"], example.attrs["frame_interval"])
    for name, style in RATES.items():
        if f"rate_{name}" in example:
            rates.plot(time, example[f"rate_{name}"] * bins, **style)
    rates.set_ylabel(label)
    rates.set_title(title, loc="left", fontsize=9)
    for axis, name in zip(fields, ("data", "model"), strict=True):
        draw_field(axis, example[f"field_{name}"])
        axis.set(xticks=[], yticks=[])
