"""Prediction of a network with some of its filters left out (Yan et al. 2020, Fig 5)."""

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import norm

from retinakit.contracts import Analysis, Config, Model, UserError, groups, mean_response, points
from retinakit.scores import CONSTANT_PREDICTION, checked, correlation, reason
from retinakit.spikes import morans_i, morans_i_z, space_and_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PruningConfig(Config):
    """Options of the number of filters kept and of the random comparison."""

    keep: int | None = Field(
        None,
        ge=0,
        description="Number of filters to keep; all if the model has fewer. By default, those with "
        "significant spatial autocorrelation.",
    )
    significance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Level of the one-sided z-test of a filter's Moran's I against independent "
        "normal values, which selects the filters kept by default.",
    )
    draws: int = Field(
        10, ge=1, description="Number of random orders of the filters for the comparison."
    )


class Pruning(Analysis):
    """Correlation of a network that keeps its most structured filters, or as many random ones.

    The filters of the first layer are ranked by Moran's I, their spatial autocorrelation. For
    filters in space and time this is that of the spatial part of the singular value decomposition.
    The filters that are not kept are silenced, and the network is not fitted again. For comparison
    the same number of filters is kept in random order, `draws` times.

    The result has `correlation (against, kept, cell)` and `correlation_random (against, draw, kept,
    cell)` for every number of filters `kept`. The coordinate `against` is "response", the mean
    response of the test, and "rate", the true rate where it is known. `chosen` is the number of
    filters kept by the options, and `morans_i`, its `z` score and `rank (filter)`, from 0, are the
    ranking. A constant prediction has correlation 0, and a cell without test responses has NaN.

    Raises:
        UserError: if the model has no layers, or its filters have channels or fewer than 3 checks.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = Pruning.with_options(draws=2).run(model, recording)
        >>> result["correlation"].dims, result["kept"].values.tolist()
        (('against', 'kept', 'cell'), [0, 1, 2])
    """

    Config = PruningConfig
    quick: ClassVar[dict[str, Any]] = {"draws": 2}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        if not model.layers():
            raise UserError(
                f"a {type(model).__name__} cannot be pruned, because it has no layers; name a "
                "model with layers, such as cnn"
            )
        layer = next(iter(model.layers()))
        spatial = space_and_time(model)["spatial"]
        if spatial.sizes["y"] * spatial.sizes["x"] < 3:
            raise UserError(
                "filters are ranked by their autocorrelation in space, and these have only "
                f"{spatial.sizes['y']} x {spatial.sizes['x']} checks; use a larger kernel and field"
            )
        autocorrelation, z = morans_i(spatial), morans_i_z(spatial)
        # A filter of zeros has no autocorrelation, and is ranked last.
        ranking = np.argsort(-autocorrelation.fillna(-np.inf).values, kind="stable")
        filters = len(ranking)
        chosen = self.config.keep
        if chosen is None:
            chosen = int((z > norm.isf(self.config.significance)).sum())
        test = data["test"].to_dataset()

        @cache
        def score(kept: frozenset[int]) -> xr.DataArray:
            left_out = sorted(set(range(filters)) - kept)
            pruned = checked(model.without(layer, left_out).predict(test), model.lags)
            return _correlations(pruned, test)

        def curve(order: NDArray[Any]) -> xr.DataArray:
            scores = [score(frozenset(order[:n].tolist())) for n in range(filters + 1)]
            joined: xr.DataArray = xr.concat(scores, "kept").assign_coords(
                kept=np.arange(filters + 1)
            )
            return joined

        random = np.random.default_rng(self.seed)
        draws = [curve(random.permutation(filters)) for _ in range(self.config.draws)]
        effective = curve(ranking).transpose("against", "kept", "cell")
        return xr.Dataset(
            {
                "correlation": effective,
                "correlation_random": xr.concat(draws, "draw").transpose(
                    "against", "draw", "kept", "cell"
                ),
                "chosen": min(chosen, filters),
                "morans_i": autocorrelation,
                "z": z,
                "rank": ("filter", np.argsort(ranking)),
            },
            coords={"draw": np.arange(len(draws)), "filter": np.arange(filters)},
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        by_model = groups(result)
        against = _against(by_model)
        figure = Figure(figsize=(10.5, 3.6), layout="constrained")
        effective, random, curves = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
        low = 0.0
        for index, (name, group) in enumerate(by_model.items()):
            color = f"C{index}"
            numbers = _numbers(group.sel(against=against))
            full, pruned = numbers["full"].values.ravel(), numbers["effective"].values.ravel()
            mean, spread = numbers["random"].values.ravel(), numbers["sd"].values.ravel()
            effective.plot(full, pruned, "o", color=color, label=name)
            random.errorbar(full, mean, spread, fmt="o", color=color, capsize=2, lw=1)
            low = min(low, *(np.nanmin(v, initial=0) for v in (pruned, mean - spread)))
            for values, style, label in (
                (group["correlation"], "-", f"{name}, by Moran's I"),
                (group["correlation_random"], "--", f"{name}, at random"),
            ):
                _draw_curve(curves, values.sel(against=against), color, style, label)
            curves.axvline(float(numbers["kept"].mean()), color=color, lw=0.8, ls=":")
        titles = ("effective filters", "the same number of random filters")
        for axis, title in zip((effective, random), titles, strict=True):
            axis.axline((0, 0), slope=1, color="0.7", lw=0.9, zorder=0)
            limits = (min(low, 0) - 0.03, 1.03)
            axis.set(xlim=limits, ylim=limits, title=title)
            axis.set(xlabel=f"{LABELS[against]}, all filters", aspect="equal")
        effective.set_ylabel(f"{LABELS[against]}, pruned")
        if len(by_model) > 1:
            effective.legend(frameon=False, loc="upper left")
        curves.set(xlabel="number of filters kept", ylabel=LABELS[against])
        curves.legend(frameon=False, fontsize=8, loc="lower right")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        rule = (
            f"the {c.keep} with the largest Moran's I"
            if c.keep is not None
            else "those whose Moran's I is larger than that of noise (one-sided z-test, "
            f"p < {c.significance:g})"
        )
        return (
            "Correlation of pruned and full networks on the test frames; pruned networks are not "
            f"fitted again. Left: the filters kept are {rule}; each dot is a cell or a fit. "
            f"Middle: the same number of random filters, mean ± sd of {c.draws} draws. Right: "
            "correlation against the number of filters kept, mean ± sd over cells (and draws); the "
            "dotted line is the mean number kept in the other panels."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        by_model = groups(result)
        frames = []
        for name, group in by_model.items():
            numbers = _numbers(group.sel(against=_against(by_model)))
            frame = numbers.to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        columns = ["kept", "of", "full", "effective", "random", "sd"]
        table = pd.concat(frames, ignore_index=True)[[*points(result), *columns]]
        return table.rename(columns=HEADINGS)


HEADINGS = {
    "kept": "filters kept",
    "of": "filters in all",
    "full": "correlation, all filters",
    "effective": "correlation, filters kept",
    "random": "correlation, random filters",
    "sd": "sd, random filters",
}
LABELS = {"rate": "correlation with the true rate", "response": "correlation with the response"}


def _correlations(predicted: xr.DataArray, test: xr.Dataset) -> xr.DataArray:
    """Correlation (against, cell) with the mean response, and with the rate where it is known."""
    known = {"response": mean_response(test).astype(float)}
    if "rate" in test:
        known["rate"] = test["rate"]
    scores = [
        correlation(predicted, observed).where(
            reason(predicted, observed) != CONSTANT_PREDICTION, 0
        )
        for observed in known.values()
    ]
    joined: xr.DataArray = xr.concat(scores, "against").assign_coords(against=list(known))
    return joined


def _against(by_model: dict[str, xr.Dataset]) -> str:
    """The entry of `against` to show: "rate" if all models have it, else "response"."""
    known = all("rate" in group["against"] for group in by_model.values())
    return "rate" if known else "response"


def _numbers(group: xr.Dataset) -> xr.Dataset:
    """For each cell and point of the sweep, the numbers of filters and the correlations."""
    number = group["rank"].count("filter")

    def at(values: xr.DataArray, kept: xr.DataArray) -> xr.DataArray:
        chosen: xr.DataArray = values.where(values["kept"] == kept).mean("kept")
        return chosen

    random = at(group["correlation_random"], group["chosen"])
    numbers = xr.Dataset(
        {
            "kept": group["chosen"],
            "of": number,
            "full": at(group["correlation"], number),
            "effective": at(group["correlation"], group["chosen"]),
            "random": random.mean("draw"),
            "sd": random.std("draw"),
        }
    )
    return numbers.drop_vars("against").transpose(*numbers["full"].dims, ...)


def _draw_curve(axis: Any, values: xr.DataArray, color: str, style: str, label: str) -> None:
    """Draws mean and standard deviation over all dimensions but the number of filters kept."""
    others = [dim for dim in values.dims if dim != "kept"]
    mean, spread = values.mean(others), values.std(others)
    axis.plot(values["kept"], mean, style, color=color, label=label)
    axis.fill_between(values["kept"], mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
