"""A network without some of its filters: those with spatial structure, or any (Yan 2020, Fig 5)."""

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import norm

from retinakit.contracts import Analysis, Config, Model, UserError, groups, mean_response, points
from retinakit.scores import correlation
from retinakit.spikes import morans_i, morans_i_z, space_and_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PruningConfig(Config):
    """How many filters are kept, and what they are compared with."""

    keep: int | None = Field(
        None,
        ge=0,
        description="How many filters to keep, all of them where there are fewer; by default those "
        "whose spatial autocorrelation is significant.",
    )
    significance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Largest p-value of a filter that is kept by default, in a one-sided z-test of "
        "its Moran's I against independent normal values.",
    )
    draws: int = Field(10, ge=1, description="Random orders of the filters to compare with.")


class Pruning(Analysis):
    """What a model still predicts with its most structured filters, or as many random ones.

    The filters are those of the model's first layer. They are ranked by Moran's I, the spatial
    autocorrelation, of a filter in space and time by that of the spatial part of its singular value
    decomposition. The first ones are kept, the others are silent, and nothing is fitted again. Each
    of the random `draws` is an order of all filters, of which as many are kept.

    The result has `correlation (against, kept, cell)` between the prediction with so many filters
    and the mean response of the test, and the true rate where it is known; `correlation_random
    (against, draw, kept, cell)`; `chosen`, the number kept by the options; and of each filter
    `morans_i`, `z`, and `rank` from 0. A prediction that does not vary has correlation 0, and a
    cell without responses in the test has NaN.
    """

    Config = PruningConfig
    quick: ClassVar[dict[str, Any]] = {"draws": 2}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        if not model.layers():
            raise UserError(
                f"a {type(model).__name__} cannot be pruned, because it has no layers; name models "
                "whose filters can be left out, such as cnn"
            )
        layer = next(iter(model.layers()))
        spatial = space_and_time(model)["spatial"]
        autocorrelation, z = morans_i(spatial), morans_i_z(spatial)
        # A filter of zeros has no autocorrelation, and comes last.
        ranking = np.argsort(-autocorrelation.fillna(-np.inf).values, kind="stable")
        filters = len(ranking)
        chosen = self.config.keep
        if chosen is None:
            chosen = int((z > norm.isf(self.config.significance)).sum())
        test = data["test"].to_dataset()

        @cache
        def score(kept: frozenset[int]) -> xr.DataArray:
            left_out = sorted(set(range(filters)) - kept)
            return _correlations(model.without(layer, left_out).predict(test), test)

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
            low = min(low, np.nanmin(pruned), np.nanmin(mean - spread))
            for values, style, label in (
                (group["correlation"], "-", f"{name}, by Moran's I"),
                (group["correlation_random"], "--", f"{name}, at random"),
            ):
                _draw_curve(curves, values.sel(against=against), color, style, label)
            curves.axvline(float(numbers["kept"].mean()), color=color, lw=0.8, ls=":")
        for axis, title in ((effective, "effective filters"), (random, "as many random filters")):
            axis.axline((0, 0), slope=1, color="0.7", lw=0.9, zorder=0)
            limits = (min(low, 0) - 0.03, 1.03)
            axis.set(xlim=limits, ylim=limits, title=title)
            axis.set(xlabel=f"{LABELS[against]}, all filters", aspect="equal")
        effective.set_ylabel("the same, pruned")
        if len(by_model) > 1:
            effective.legend(frameon=False, loc="upper left")
        curves.set(xlabel="filters kept", ylabel=LABELS[against])
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
            "Correlation with the test, of predictions with some filters left out and nothing "
            f"fitted again. Left: {rule} are kept; a dot is a cell or a fit. Middle: as many "
            f"chosen at random, mean ± sd of {c.draws} draws. Right: against the number kept, "
            "mean ± sd over cells (and draws); dotted, the mean number of the other panels."
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
        return table.rename(columns={"random": "random, mean", "sd": "random, sd"})


LABELS = {"rate": "correlation with the true rate", "response": "correlation with the response"}


def _correlations(predicted: xr.DataArray, test: xr.Dataset) -> xr.DataArray:
    """(against, cell): with the mean response, and with the rate where it is known."""
    known = {"response": mean_response(test).astype(float)}
    if "rate" in test:
        known["rate"] = test["rate"]
    scores = [
        correlation(predicted, observed).fillna(0).where(observed.notnull().any("frame"))
        for observed in known.values()
    ]
    joined: xr.DataArray = xr.concat(scores, "against").assign_coords(against=list(known))
    return joined


def _against(by_model: dict[str, xr.Dataset]) -> str:
    """The rate where it is known for all models, else the response."""
    known = all("rate" in group["against"] for group in by_model.values())
    return "rate" if known else "response"


def _numbers(group: xr.Dataset) -> xr.Dataset:
    """Of each cell and point of the sweep: filters kept and their number, and the correlations."""
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
    """Mean and standard deviation over all that is not the number of filters kept."""
    others = [dim for dim in values.dims if dim != "kept"]
    mean, spread = values.mean(others), values.std(others)
    axis.plot(values["kept"], mean, style, color=color, label=label)
    axis.fill_between(values["kept"], mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
