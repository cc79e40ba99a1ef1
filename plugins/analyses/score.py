"""Prediction scores on the test frames, with the noise ceiling."""

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
    groups,
    mean_over_repeats,
    mean_response,
    points,
    sweep_dims,
)
from retinakit.report import marks, number_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "correlation_rate": "correlation with the true rate",
    "correlation": "correlation with the response",
    "ceiling": "noise ceiling",
    "normalised_correlation": "correlation / ceiling",
    "feve": "FEVE",
    "fev": "FEV",
    "bits_per_spike": "bits per spike",
    "mse_validation": "mean squared error on the validation frames",
}


NEGATIVE = "a prediction is negative, so the Poisson scores are not defined"
ROOM = 36
"""Largest number of letters of all model names together that are written horizontally."""


class ScoreConfig(Config):
    """Options of the scores."""

    draws: int = Field(
        500,
        ge=0,
        description="Number of bootstrap draws for the confidence interval of the correlation; 0: "
        "no interval.",
    )
    block: int = Field(
        10, ge=1, description="Block length of the bootstrap, in frames that are drawn together."
    )


class Score(Analysis):
    """Prediction scores of each cell on the test frames, which were not used for fitting.

    Frames without a full history are left out. All scores have the dimension `cell`
    (`retinakit.scores` has the equations).

    - Of the mean response over repeats: `correlation`; `correlation_low` and `correlation_high`,
      its 95 % interval by a bootstrap over blocks of frames; with repeats, the noise `ceiling` of
      the correlation, `normalised_correlation` = correlation / ceiling (Schoppe et al. 2016),
      `explainable`, the fraction of the variance that is explainable, and `feve`, the fraction of
      the explainable variance that is explained (not clipped).
    - Of the true rate, where it is known: `correlation_rate` and `fev`, the fraction of its
      variance that is explained.
    - Of the responses in single bins, unless some are negative: the Poisson `deviance` per bin,
      `bits_per_spike` over a constant rate, and `bits_per_spike_validation` on the validation
      frames.
    - `mse_validation`, the mean squared error on the validation frames, by which fits are chosen.
    - Of the recording, with repeats: `reliability`, the correlation between odd and even repeats,
      and `stability`, the correlation between the first and the last third of the repeats.

    A score that cannot be computed is NaN, and `reason (cell)` says why.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = Score.with_options(draws=20).run(model, recording)
        >>> bool((result["correlation"] < result["correlation_rate"]).all())
        True
    """

    Config = ScoreConfig
    quick: ClassVar[dict[str, Any]] = {"draws": 20}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        test, validation = data["test"].to_dataset(), data["validation"].to_dataset()
        each = model.predict(test)  # of each repeat, for a model with spike history
        predicted = mean_over_repeats(each)
        response = test["response"].astype(float).where(predicted.notnull())
        mean = mean_response(test).astype(float)
        chosen = model.predict(validation)
        error = (mean_over_repeats(chosen) - mean_response(validation).astype(float)) ** 2
        scores: dict[str, Any] = {
            "correlation": metrics.correlation(predicted, mean),
            "mse_validation": error.mean("frame"),
        }
        held_out = validation["response"].astype(float)
        if not ((response < 0).any() or (held_out < 0).any()):
            over = [dim for dim in response.dims if dim != "cell"]
            scores |= {
                "deviance": metrics.poisson_deviance(each, response),
                "bits_per_spike": metrics.bits_per_spike(each, response),
                "bits_per_spike_validation": metrics.bits_per_spike(chosen, held_out),
                "spikes": response.sum(over, min_count=1),
            }
        if "repeat" in response.dims and response.sizes["repeat"] > 1:
            known = predicted.notnull().any("cell").values
            scored = response.isel(frame=known)
            explainable, noise = metrics.explainable_variance(scored)
            scores["explainable"] = explainable / (explainable + noise)
            scores["feve"] = metrics.feve(predicted.isel(frame=known), scored)
            scores["ceiling"] = metrics.correlation_ceiling(scored)
            scores["normalised_correlation"] = scores["correlation"] / scores["ceiling"]
            scores["reliability"] = metrics.correlation(
                scored.isel(repeat=slice(0, None, 2)).mean("repeat"),
                scored.isel(repeat=slice(1, None, 2)).mean("repeat"),
            )
            third = scored.sizes["repeat"] // 3
            if third:
                scores["stability"] = metrics.correlation(
                    scored.isel(repeat=slice(0, third)).mean("repeat"),
                    scored.isel(repeat=slice(-third, None)).mean("repeat"),
                )
        if "rate" in test:
            scores["correlation_rate"] = metrics.correlation(predicted, test["rate"])
            scores["fev"] = metrics.fraction_of_explained_variance(predicted, test["rate"])
        if self.config.draws:
            options = (self.config.draws, self.config.block, self.seed)
            low, high = metrics.correlation_interval(predicted, mean, *options)
            scores |= {"correlation_low": low, "correlation_high": high}
        reason = metrics.reason(predicted, mean)
        if "bits_per_spike" in scores:
            negative = (reason == "") & (predicted.where(mean.notnull()) < 0).any("frame")
            reason = xr.where(negative, NEGATIVE, reason)
        if (reason != "").any():
            scores["reason"] = reason
        result = xr.Dataset(scores).drop_vars(["time", "segment", "frame"], errors="ignore")
        for name, label in LABELS.items():
            if name in result:
                result[name].attrs["long_name"] = label
        return result

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        by_model = groups(result)
        swept = _numeric_sweep(by_model)
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        drawn = (_headline(by_model), _second(by_model))
        for ax, name in zip(figure.subplots(1, 2), drawn, strict=True):
            for index, (model, group) in enumerate(by_model.items()):
                _draw(ax, index, model, group[name], swept)
            ax.set_ylabel(LABELS[name])
            if swept:
                axes = [group[swept].values for group in by_model.values() if swept in group.dims]
                number_axis(ax, swept, np.unique(np.concatenate(axes)))
            else:
                ax.set_xticks(range(len(by_model)), list(by_model))
                if sum(map(len, by_model)) > ROOM:
                    ax.tick_params("x", rotation=90)
        if swept:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        by_model = groups(result)
        name = _headline(by_model)
        parts = []
        for model, group in by_model.items():
            values = group[name]
            best = f", {float(values.max()):.3f} at best" if values.size > 1 else ""
            parts.append(f"{model} {float(values.mean()):.3f}{best}")
        return (
            f"Scores on the test frames: {LABELS[name]} ({'; '.join(parts)}), and "
            f"{LABELS[_second(by_model)]}. Each dot is a cell or a fit, and lines or bars are "
            "means."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        order = [
            *("correlation", "ceiling", "normalised_correlation", "correlation_rate", "fev"),
            *("feve", "bits_per_spike", "bits_per_spike_validation", "correlation_low"),
            *("correlation_high", "explainable", "deviance", "reliability", "stability", "spikes"),
            *("mse_validation", "reason"),
        ]
        frames = []
        for model, group in groups(result).items():
            columns = [name for name in order if name in group]
            frame = group[columns].to_dataframe().reset_index()
            frame.insert(0, "model", model)
            # Cells that belong to other points of the sweep have neither scores nor a reason.
            frame = frame.replace({"reason": ""}, np.nan) if "reason" in frame else frame
            frames.append(frame.dropna(how="all", subset=columns))
        table = pd.concat(frames, ignore_index=True)
        if "reason" in table:
            table["reason"] = table["reason"].fillna("")
        return table[[*points(result), *[name for name in order if name in table]]]


def _headline(by_model: dict[str, xr.Dataset]) -> str:
    known = all("correlation_rate" in group for group in by_model.values())
    return "correlation_rate" if known else "correlation"


def _second(by_model: dict[str, xr.Dataset]) -> str:
    """Bits per spike, or the first other score that all models have if responses are negative."""
    names = ("bits_per_spike", "fev", "feve", "mse_validation")
    return next(name for name in names if all(name in group for group in by_model.values()))


def _numeric_sweep(by_model: dict[str, xr.Dataset]) -> str | None:
    """The first swept option of several numbers, for the horizontal axis; None if there is none."""
    for group in by_model.values():
        for dim in sweep_dims(group):
            several = group.sizes[dim] > 1 and dim not in ("cell", "seed")
            if several and group[dim].dtype.kind in "if":
                return dim
    return None


def _draw(ax: Any, index: int, model: str, values: xr.DataArray, swept: str | None) -> None:
    """Draws one model's scores against the swept option, as a horizontal line, or as a bar."""
    color, (marker, level) = f"C{index}", marks(index)
    if swept and swept in values.dims:
        flat = values.transpose(swept, ...).values.reshape(values.sizes[swept], -1)
        x = values[swept].values
        ax.plot(x, flat, marker, ms=4, color=color, alpha=0.6)
        ax.plot(
            x,
            values.mean([d for d in values.dims if d != swept]),
            marker=marker,
            ms=4,
            color=color,
            label=model,
        )
        return
    each = values.values.ravel()
    mean = float(values.mean())
    if swept:
        ax.axhline(mean, color=color, ls=level, label=model)
        return
    ax.bar(index, mean, width=0.6, color=color, alpha=0.35)
    half = 0.2 if len(each) > 1 else 0.0
    spread = np.linspace(-half, half, len(each))
    ax.plot(index + spread, each, "o", ms=4, color=color)
