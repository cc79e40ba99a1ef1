"""Prediction scores on the test frames, with the noise ceiling."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit import scores as metrics
from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
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
    "ceiling_error": "standard error of the noise ceiling",
    "normalised_correlation": "correlation / ceiling",
    "population_correlation": "correlation of the mean responses over cells",
    "correlation_of_mean": "correlation of the mean over cells, in time",
    "feve": "FEVE",
    "fev": "FEV",
    "bits_per_spike": "bits per spike",
    "bits_per_second": "bits per second",
    "mse_validation": "mean squared error on the validation frames",
    "accuracy": "accuracy",
    "accuracy_validation": "accuracy on the validation frames",
    "cross_entropy": "cross-entropy (bits)",
}
POISSON = ("deviance", "bits_per_spike", "bits_per_second", "bits_per_spike_validation")

WORSE = "predicts the validation frames worse than a constant rate, the cell's mean in training"
IMPOSSIBLE = (
    "predicts a rate of 0 or less in a bin with a spike, which scores -inf bits per spike; the "
    "option rate_floor gives a finite score"
)
GUESSING = (
    "decides no more validation trials correctly than the most frequent class in training would"
)
MISSING = f"has no score, because {metrics.NOT_PREDICTED}"

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
    rate_floor: float | None = Field(
        None,
        gt=0,
        description="Lower bound of the predicted rates in the Poisson scores, in spikes per bin, "
        "for models that predict rates of 0 or less; null: none, and a rate of 0 or less in a bin "
        "with a spike scores -inf.",
    )


class Score(Analysis):
    """Prediction scores of each cell on the test frames, which were not used for fitting.

    Frames without a full history are left out. Scores have the dimension `cell`
    (`retinakit.scores` has the equations).

    - Of the mean response over repeats: `correlation`; `correlation_low` and `correlation_high`,
      its 95 % interval by a bootstrap over blocks of frames; with repeats, the noise `ceiling` of
      the correlation and its standard error `ceiling_error` by the jackknife over repeats,
      `normalised_correlation` = correlation / ceiling (Schoppe et al. 2016), `explainable`, the
      fraction of the variance that is explainable, and `feve`, the fraction of the explainable
      variance that is explained (not clipped).
    - Of the true rate, where it is known: `correlation_rate` and `fev`, the fraction of its
      variance that is explained.
    - Of the responses in single bins, unless some are negative: the Poisson `deviance` per bin,
      `bits_per_spike` and `bits_per_second` over a constant rate, and `bits_per_spike_validation`
      on the validation frames. A negative rate is taken as 0, and a rate of 0 or less in a bin with
      a spike scores -inf (the deviance inf), unless the option `rate_floor` sets a lower bound,
      which is then an attribute of these scores.
    - `mse_validation`, the mean squared error on the validation frames, by which fits are chosen.
    - Of the recording, with repeats: `reliability`, the correlation between odd and even repeats,
      and `stability`, the correlation between the first and the last third of the repeats.
    - Of three cells or more together, without the dimension `cell`: `population_correlation`, the
      correlation over cells between the means over time of prediction and response; and
      `correlation_of_mean`, the correlation over time between the means over cells (the population
      CC of Zheng et al. 2021; their mean CC is the mean of `correlation` over cells, which
      `readout_table` has too).

    If the responses are decisions, one class of several (`retinakit.scores.is_task`), the scores
    are others and have no dimension `cell`: the `accuracy`, its 95 % interval `accuracy_low` and
    `accuracy_high` (Wilson), the number of `decisions`, `accuracy_validation`, and, if predictions
    are probabilities, the `cross_entropy` in bits per decision.

    A score that cannot be computed is NaN, and `reason (cell)` says why. It also says why Poisson
    scores are -inf. The report shows `warning (cell)` at its top: for these cells, for missing
    predictions, and for a model that is worse on the validation frames than a constant, the mean
    response in training, by the Poisson likelihood or, if some responses are negative, by the mean
    squared error.

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
        if metrics.is_task(test["response"]):
            return _of_decisions(model, data)
        each = metrics.checked(model.predict(test), model.lags)
        predicted = _of_mean_response(each, test)
        mean = mean_response(test).astype(float)
        response = test["response"].astype(float).where(predicted.notnull())
        held_out = validation["response"].astype(float)
        chosen = metrics.checked(model.predict(validation), model.lags)
        validated = (
            _of_mean_response(chosen, validation),
            mean_response(validation).astype(float),
        )
        scores: dict[str, Any] = {
            "correlation": metrics.correlation(predicted, mean),
            "mse_validation": metrics.mean_squared_error(*validated),
        }
        counted = not ((response < 0).any() or (held_out < 0).any())
        if counted:
            floor = self.config.rate_floor
            rate, held_rate = (p if floor is None else p.clip(floor) for p in (each, chosen))
            interval = test.attrs["frame_interval"]
            scores |= {
                "deviance": metrics.poisson_deviance(rate, response),
                "bits_per_spike": metrics.bits_per_spike(rate, response),
                "bits_per_second": metrics.bits_per_second(rate, response, interval),
                "bits_per_spike_validation": metrics.bits_per_spike(held_rate, held_out),
                "spikes": response.sum(_bins(response), min_count=1),
            }
        if "repeat" in response.dims and response.sizes["repeat"] > 1:
            scores |= _with_repeats(predicted, response)
            scores["normalised_correlation"] = scores["correlation"] / scores["ceiling"]
        if "rate" in test:
            scores["correlation_rate"] = metrics.correlation(predicted, test["rate"])
            scores["fev"] = metrics.fraction_of_explained_variance(predicted, test["rate"])
        if predicted.sizes["cell"] >= metrics.SMALLEST_POPULATION:
            scores["population_correlation"] = metrics.population_correlation(predicted, mean)
            scores["correlation_of_mean"] = metrics.correlation_of_mean(predicted, mean)
        if self.config.draws:
            options = (self.config.draws, self.config.block, self.seed)
            low, high = metrics.correlation_interval(predicted, mean, *options)
            scores |= {"correlation_low": low, "correlation_high": high}
        reason = metrics.reason(predicted, mean)
        compared = (held_rate, held_out) if counted else validated
        loss = metrics.poisson_loss if counted else metrics.mean_squared_error
        both = (reason, metrics.reason(*validated))
        warnings = {
            MISSING: (both[0] == metrics.NOT_PREDICTED) | (both[1] == metrics.NOT_PREDICTED)
        }
        if counted:
            in_test = scores["bits_per_spike"] == -np.inf
            in_validation = scores["bits_per_spike_validation"] == -np.inf
            warnings[IMPOSSIBLE] = in_test | in_validation
            why = xr.where(in_test, metrics.SPIKE_AT_ZERO_RATE, SPIKE_IN_VALIDATION)
            reason = xr.where((reason == "") & warnings[IMPOSSIBLE], why, reason)
        train = data["train"].to_dataset()["response"]
        constant = xr.where(compared[0].notnull(), train.mean(_bins(train)), np.nan)
        warnings[WORSE] = loss(*compared) > loss(constant, compared[1])
        warning = reason.copy(data=np.select(list(warnings.values()), list(warnings), ""))
        for name, text in {"reason": reason, "warning": warning}.items():
            if (text != "").any():
                scores[name] = text
        result = xr.Dataset(scores).drop_vars(["time", "segment", "frame"], errors="ignore")
        for name, label in LABELS.items():
            if name in result:
                result[name].attrs["long_name"] = label
        if counted and self.config.rate_floor is not None:
            for name in POISSON:
                result[name].attrs["rate_floor"] = self.config.rate_floor
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
            if any(np.isneginf(group[name]).any() for group in by_model.values()):
                ax.set_title("▼ -inf", fontsize=9, loc="right")
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
        first, second = _headline(by_model), _second(by_model)
        parts = []
        for name in (first, second):
            numbers = "; ".join(f"{m} {_summary(name, g[name])}" for m, g in by_model.items())
            parts.append(f"{LABELS[name]} ({numbers})")
        if first == "accuracy":
            return (
                f"Decisions in the test trials: {', and '.join(parts)}. Each dot is a fit, and "
                "lines or bars are means."
            )
        centre = "means" + ", or medians for bits per spike" * (second == "bits_per_spike")
        floor = self.config.rate_floor
        bound = f"below {floor:g} spikes per bin count as {floor:g}" if floor else ""
        return (
            f"Scores on the test frames: {', and '.join(parts)}. Each dot is a cell or a fit, and "
            f"lines or bars are {centre}."
            + f" In the Poisson scores, predicted rates {bound}."
            * bool(bound)
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        order = [
            *("correlation", "ceiling", "ceiling_error", "normalised_correlation"),
            *("correlation_rate", "fev", "feve", "bits_per_spike", "bits_per_second"),
            *("bits_per_spike_validation", "correlation_low", "correlation_high", "explainable"),
            *("deviance", "reliability", "stability", "spikes", "mse_validation"),
            *("population_correlation", "correlation_of_mean", "accuracy", "accuracy_low"),
            *("accuracy_high", "decisions", "accuracy_validation", "cross_entropy", "reason"),
        ]
        frames = []
        for model, group in groups(result).items():
            columns = [name for name in order if name in group]
            # A dimension of one row, because the scores of decisions may have none.
            flat = group[columns].expand_dims("row")
            frame = flat.to_dataframe().reset_index().drop(columns="row")
            frame.insert(0, "model", model)
            # Cells that belong to other points of the sweep have neither scores nor a reason.
            frame = frame.replace({"reason": ""}, np.nan) if "reason" in frame else frame
            of_cells = [name for name in columns if "cell" in group[name].dims]
            frames.append(frame.dropna(how="all", subset=of_cells or columns))
        table = pd.concat(frames, ignore_index=True)
        if "reason" in table:
            table["reason"] = table["reason"].fillna("")
        first = [name for name in points(result) if name in table]  # decisions have no cells
        return table[[*first, *[name for name in order if name in table]]]


SPIKE_IN_VALIDATION = f"{metrics.SPIKE_AT_ZERO_RATE} of the validation frames"


def _of_decisions(model: Model, data: xr.DataTree) -> xr.Dataset:
    """The scores of a model that chooses one of several classes."""
    scores: dict[str, Any] = {}
    for name, suffix in (("test", ""), ("validation", "_validation")):
        split = data[name].to_dataset()
        predicted, chosen = model.predict(split), split["response"].astype(float)
        right = metrics.correct(predicted, chosen)
        scores[f"accuracy{suffix}"] = right.mean("frame")
        if suffix:
            continue
        number = right.count("frame")
        low, high = metrics.binomial_interval(scores["accuracy"].values, number.values)
        scores |= {"accuracy_low": low, "accuracy_high": high, "decisions": number}
        known = right.notnull()
        if np.allclose(predicted.sum("cell").where(known, 1), 1, atol=1e-3):
            with np.errstate(divide="ignore"):
                surprise = predicted.copy(data=-np.log2(predicted.clip(0).values))
            bits = surprise.where(chosen == 1).sum("cell")
            scores["cross_entropy"] = bits.where(known).mean("frame")
    trained = data["train"].to_dataset()["response"].astype(float)
    if float(scores["accuracy_validation"]) <= float(trained.mean("frame").max()):
        scores["warning"] = GUESSING
    result = xr.Dataset(scores).drop_vars(["time", "segment", "frame"], errors="ignore")
    for label in LABELS.keys() & set(result):
        result[label].attrs["long_name"] = LABELS[str(label)]
    return result


def _with_repeats(predicted: xr.DataArray, response: xr.DataArray) -> dict[str, xr.DataArray]:
    """The scores that need repeats, from the frames with a full history."""
    known = predicted.notnull().any("cell").values
    scored = response.isel(frame=known)
    explainable, noise = metrics.explainable_variance(scored)
    total = explainable + noise

    def agreement(first: slice, second: slice) -> xr.DataArray:
        one, other = (scored.isel(repeat=part).mean("repeat") for part in (first, second))
        return metrics.correlation(one, other.where(one.notnull()))

    scores = {
        "explainable": explainable / total.where(total > 0),
        "feve": metrics.feve(predicted.isel(frame=known), scored),
        "ceiling": metrics.correlation_ceiling(scored),
        "ceiling_error": metrics.correlation_ceiling_error(scored),
        "reliability": agreement(slice(0, None, 2), slice(1, None, 2)),
    }
    third = scored.sizes["repeat"] // 3
    if third:
        scores["stability"] = agreement(slice(0, third), slice(-third, None))
    return scores


def _of_mean_response(each: xr.DataArray, split: xr.Dataset) -> xr.DataArray:
    """The prediction of the mean response, from the repeats in which the response is known.

    A model with spike history predicts each repeat.
    """
    if "repeat" in each.dims:
        each = each.where(split["response"].notnull())
    return mean_over_repeats(each)


def _bins(response: xr.DataArray) -> list[str]:
    return [str(dim) for dim in response.dims if dim != "cell"]


def _summary(name: str, values: xr.DataArray) -> str:
    """The mean, for bits per spike the median too, and the numbers of cells of -inf and at best."""
    flat = values.values.ravel()
    known = flat[~np.isnan(flat)]
    if len(known) == 0:
        return "none"
    text = f"{known.mean():.3f}"
    if name == "bits_per_spike" and len(known) > 1:
        text = f"mean {text}, median {_median(known):.3f}"
    if infinite := np.isneginf(known).sum():
        text += f", -inf in {infinite} of {len(known)}"
    best = known.max()
    return text + (f", {best:.3f} at best" if len(known) > 1 and np.isfinite(best) else "")


def _median(values: NDArray[Any]) -> float:
    """The median, which may be -inf; that of two middle values is their mean."""
    ordered = np.sort(values[~np.isnan(values)])
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]] if len(ordered) else [np.nan]
    return float(np.mean(middle))


def _headline(by_model: dict[str, xr.Dataset]) -> str:
    return _first(by_model, ("accuracy", "correlation_rate", "correlation"))


def _second(by_model: dict[str, xr.Dataset]) -> str:
    """Bits per spike, or the first other score that all models have if responses are negative."""
    names = ("bits_per_spike", "fev", "feve", "mse_validation")
    return _first(by_model, (*names, "cross_entropy", "accuracy_validation"))


def _first(by_model: dict[str, xr.Dataset], names: tuple[str, ...]) -> str:
    """The first of these scores that all models have."""
    common = [name for name in names if all(name in group for group in by_model.values())]
    if not common:
        raise UserError(
            "the recordings of some models have decisions and those of others have rates, which "
            "have no score in common; use one score step for each kind"
        )
    return common[0]


def _numeric_sweep(by_model: dict[str, xr.Dataset]) -> str | None:
    """The first swept option of several numbers, for the horizontal axis; None if there is none."""
    for group in by_model.values():
        for dim in sweep_dims(group):
            several = group.sizes[dim] > 1 and dim not in ("cell", "seed")
            if several and group[dim].dtype.kind in "if":
                return dim
    return None


def _draw(ax: Any, index: int, model: str, values: xr.DataArray, swept: str | None) -> None:
    """Draws one model's scores against the swept option, as a horizontal line, or as a bar.

    Scores of -inf are triangles at the lower edge of the panel.
    """
    color, (marker, level) = f"C{index}", marks(index)
    centre = _median if values.name == "bits_per_spike" else _mean
    if swept and swept in values.dims:
        flat = values.transpose(swept, ...).values.reshape(values.sizes[swept], -1)
        x = values[swept].values
        ax.plot(x, _finite(flat), marker, ms=4, color=color, alpha=0.6)
        _mark_infinite(ax, np.repeat(x, flat.shape[1]), flat.ravel(), color)
        line = _finite(np.array([centre(row) for row in flat]))
        ax.plot(x, line, marker=marker, ms=4, color=color, label=model)
        return
    each = values.values.ravel()
    middle = centre(each)
    if swept:
        ax.axhline(float(_finite(middle)), color=color, ls=level, label=model)
        if np.isneginf(middle):
            ax.plot(0.02, 0.03, "v", ms=6, color=color, transform=ax.transAxes)
        return
    ax.bar(index, np.nan_to_num(_finite(middle)), width=0.6, color=color, alpha=0.35)
    half = 0.2 if len(each) > 1 else 0.0
    spread = index + np.linspace(-half, half, len(each))
    ax.plot(spread, _finite(each), "o", ms=4, color=color)
    _mark_infinite(ax, spread, each, color)


def _mean(values: NDArray[Any]) -> float:
    """The mean of the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _finite(values: Any) -> Any:
    """Values with NaN, which is not drawn, in the place of infinite ones."""
    return np.where(np.isfinite(values), values, np.nan)


def _mark_infinite(ax: Any, x: NDArray[Any], values: NDArray[Any], color: str) -> None:
    """Draws triangles at the lower edge of the panel for scores of -inf."""
    lost = x[np.isneginf(values)]
    place = ax.get_xaxis_transform()
    ax.plot(lost, np.full(len(lost), 0.03), "v", ms=6, color=color, transform=place)
