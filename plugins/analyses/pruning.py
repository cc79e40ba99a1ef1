"""Prediction of a network with some filters left out (Yan et al. 2020 and Zheng et al. 2021)."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy.stats import norm

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
    cases,
    groups,
    mean_response,
    points,
)
from retinakit.report import draw_field, in_time
from retinakit.scores import (
    CONSTANT_PREDICTION,
    checked,
    correlation,
    correlation_of_mean,
    reason,
)
from retinakit.spikes import morans_i, morans_i_z, space_and_time, temporal_regularity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ALL_NUMBERS = 32
"""Largest number of filters of which every number kept is computed by default."""

CASES, SHOWN = 4, 10
"""Largest numbers of models, and of filters of each, that are drawn."""


class PruningConfig(Config):
    """Options of the ranking, of the numbers of filters kept and of the random comparison."""

    index: Literal["spatial", "temporal"] = Field(
        "spatial",
        description="Index by which the filters are ranked, the largest first. 'spatial': Moran's "
        "I (Yan et al. 2020); 'temporal': the temporal regularity (Zheng et al. 2021, Eq 8).",
    )
    counts: list[int] | None = Field(
        None,
        min_length=1,
        description="Numbers of filters kept, such as [128, 96, 64, 32, 16, 8]; those above the "
        "number of filters are left out, and all filters and the number of `keep` are added. By "
        "default every number, or for more than 32 filters 0 and the powers of 2.",
    )
    keep: int | None = Field(
        None,
        ge=0,
        description="Number of filters to keep; all if the model has fewer. By default the number "
        "of filters with significant spatial autocorrelation, for either index.",
    )
    significance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Level of the one-sided z-test of a filter's Moran's I against independent "
        "normal values, which gives the number of filters kept by default.",
    )
    draws: int = Field(
        10, ge=1, description="Number of random orders of the filters for the comparison."
    )

    @field_validator("counts")
    @classmethod
    def _not_negative(cls, counts: list[int] | None) -> list[int] | None:
        if counts is not None and min(counts) < 0:
            raise ValueError(f"a number of filters kept is negative ({min(counts)})")
        return counts


class Pruning(Analysis):
    """Correlation of a network that keeps its most structured filters, or as many random ones.

    The filters of the first layer are ranked by Moran's I, their spatial autocorrelation (Yan et
    al. 2020, Fig 5), or by their temporal regularity (Zheng et al. 2021, Eq 8 and Fig 5). For
    filters in space and time these are the indices of the parts of the singular value decomposition
    of the filter minus its mean. The filters that are not kept are silenced, and the network is not
    fitted again. For comparison the same number of filters is kept in random order, `draws` times.

    The result has `correlation (against, kept, cell)` and `correlation_random (against, draw, kept,
    cell)` for the numbers of filters `kept`. Their means over cells are the mean CC of Zheng et al.
    For several cells it also has `correlation_of_mean (against, kept)` and
    `correlation_of_mean_random (against, draw, kept)`, the correlation over time between the means
    over cells, their population CC. The coordinate `against` is "response", the mean response of
    the test, and "rate", the true rate where it is known. `chosen` is the number of filters kept by
    the options, and `morans_i`, its `z` score, with several lags `temporal_regularity`, and `rank
    (filter)`, from 0, are the ranking, with `filter_image (filter, kernel_y, kernel_x)` and
    `filter_temporal (filter, lag)`. A constant prediction has correlation 0, and a cell without
    test responses has NaN.

    Raises:
        UserError: if the model has no layers, or its filters have channels, fewer than 3 checks and
            no number to keep, or no index.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = Pruning.with_options(draws=2, index="temporal").run(model, recording)
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
        c, layer = self.config, next(iter(model.layers()))
        # The offset of a filter would be its first singular vector (Zheng et al.'s code).
        parts = space_and_time(model, subtract_mean=True)
        ranked = _indices(parts, c.index, c.keep)
        index = ranked["morans_i" if c.index == "spatial" else "temporal_regularity"]
        # A filter of zeros has no index, and is ranked last.
        ranking = np.argsort(-index.fillna(-np.inf).values, kind="stable")
        filters = len(ranking)
        chosen = c.keep
        if chosen is None:
            chosen = int((ranked["z"] > norm.isf(c.significance)).sum())
        chosen = min(chosen, filters)
        kept = _numbers_kept(c.counts, filters, chosen)
        test = data["test"].to_dataset()

        @cache
        def score(those: frozenset[int]) -> xr.Dataset:
            left_out = sorted(set(range(filters)) - those)
            pruned = checked(model.without(layer, left_out).predict(test), model.lags)
            return _correlations(pruned, test)

        def curve(order: NDArray[Any]) -> xr.Dataset:
            scores = [score(frozenset(order[:n].tolist())) for n in kept]
            joined: xr.Dataset = xr.concat(scores, "kept").assign_coords(kept=kept)
            return joined

        random = np.random.default_rng(self.seed)
        draws = [curve(random.permutation(filters)) for _ in range(c.draws)]
        result = curve(ranking)
        at_random = xr.concat(draws, "draw").assign_coords(draw=np.arange(len(draws)))
        result = result.merge(at_random.rename({n: f"{n}_random" for n in at_random.data_vars}))
        result = result.transpose("against", "draw", "kept", "cell").merge(ranked)
        result["filter_image"] = parts["spatial"].rename(y="kernel_y", x="kernel_x")
        if "temporal" in parts:
            result["filter_temporal"] = parts["temporal"]
        return result.assign(chosen=chosen, rank=("filter", np.argsort(ranking))).assign_coords(
            filter=np.arange(filters)
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        by_model = groups(result)
        rows = len(list(_sorted_cases(result)))
        height, below = 3.6, 1.5 * rows + 0.3
        figure = Figure(figsize=(10.5, height + below), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, below])
        above, filters = parts
        if all(_of_population(group) for group in by_model.values()):
            self._draw_population(above, by_model)
        else:
            self._draw_cells(above, by_model)
        _draw_filters(filters, result, rows)
        return figure

    def _draw_population(self, figure: Any, by_model: dict[str, xr.Dataset]) -> None:
        """The mean CC and the population CC against the number of filters kept."""
        against = _against(by_model)
        titles = {
            "correlation": "mean over cells (mCC)",
            "correlation_of_mean": "mean of the population (popCC)",
        }
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (variable, title) in zip(axes, titles.items(), strict=True):
            for index, (name, group) in enumerate(by_model.items()):
                for suffix, style, label in self._styles(name):
                    values = group[variable + suffix].sel(against=against)
                    if "cell" in values.dims:
                        values = values.mean("cell")  # the spread is that of draws and fits
                    _draw_curve(axis, values, f"C{index}", style, label)
            axis.set(xlabel="number of filters kept", title=title)
            _scale(axis, by_model)
        axes[0].set_ylabel(LABELS[against])
        axes[0].legend(frameon=False, fontsize=8, loc="lower right")

    def _draw_cells(self, figure: Any, by_model: dict[str, xr.Dataset]) -> None:
        """Each cell or fit with the filters kept, and correlation against their number."""
        against = _against(by_model)
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
            for suffix, style, label in self._styles(name):
                values = group["correlation" + suffix].sel(against=against)
                _draw_curve(curves, values, color, style, label)
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
        _scale(curves, by_model)

    def _styles(self, name: str) -> list[tuple[str, str, str]]:
        """The suffix of the variables, the line and the label of either order of the filters."""
        by = f"{name}, by {NAMES[self.config.index]}"
        return [("", "-", by), ("_random", "--", f"{name}, at random")]

    def caption(self, result: xr.DataTree) -> str:
        c, by_model = self.config, groups(result)
        start = (
            "Correlation of pruned and full networks on the test frames; pruned networks are not "
            "fitted again. "
        )
        end = (
            f" Bottom: filters of the first layer in the order of decreasing {NAMES[c.index]}, "
            "with their time course, which ends at the response. Numbers are Moran's I and, in "
            "brackets, the temporal regularity."
        )
        if all(_of_population(group) for group in by_model.values()):
            return (
                f"{start}Top: correlation against the number of filters kept, in the order of "
                f"decreasing {NAMES[c.index]} or at random (mean ± sd of {c.draws} draws). Left: "
                "mean over cells; right: correlation of the means over cells." + end
            )
        rule = (
            f"the {c.keep} with the largest {NAMES[c.index]}"
            if c.keep is not None
            else "those whose Moran's I is larger than that of noise (one-sided z-test, "
            f"p < {c.significance:g})"
            if c.index == "spatial"
            else "those with the largest temporal regularity, as many as have a Moran's I larger "
            f"than that of noise (one-sided z-test, p < {c.significance:g})"
        )
        return (
            f"{start}Left: the filters kept are {rule}; each dot is a cell or a fit. "
            f"Middle: the same number of random filters, mean ± sd of {c.draws} draws. Right: "
            "correlation against the number of filters kept, mean ± sd over cells (and draws); the "
            "dotted line is the mean number kept in the other panels." + end
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        by_model = groups(result)
        against = _against(by_model)
        if all(_of_population(group) for group in by_model.values()):
            return _table_of_populations(result, against)
        frames = []
        for name, group in by_model.items():
            numbers = _numbers(group.sel(against=against))
            frame = numbers.to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        columns = ["kept", "of", "full", "effective", "random", "sd"]
        table = pd.concat(frames, ignore_index=True)[[*points(result), *columns]]
        return table.rename(columns=HEADINGS)


NAMES = {"spatial": "Moran's I", "temporal": "temporal regularity"}
HEADINGS = {
    "kept": "filters kept",
    "of": "filters in all",
    "full": "correlation, all filters",
    "effective": "correlation, filters kept",
    "random": "correlation, random filters",
    "sd": "sd, random filters",
}
LABELS = {"rate": "correlation with the true rate", "response": "correlation with the response"}


def _indices(parts: xr.Dataset, index: str, keep: int | None) -> xr.Dataset:
    """The indices (filter) of the filters' parts."""
    spatial = parts["spatial"]
    checks = f"{spatial.sizes['y']} x {spatial.sizes['x']} checks"
    if spatial.sizes["y"] * spatial.sizes["x"] < 3 and (index == "spatial" or keep is None):
        raise UserError(
            f"filters are ranked by their autocorrelation in space, and these have only {checks}; "
            "use a larger kernel and field, or index 'temporal' with keep"
        )
    if "temporal" not in parts and index == "temporal":
        raise UserError(
            "filters of one lag have no temporal regularity; use index 'spatial', or a model of "
            "several lags"
        )
    found = {"morans_i": morans_i(spatial), "z": morans_i_z(spatial)}
    if "temporal" in parts:
        found["temporal_regularity"] = temporal_regularity(parts["temporal"])
    return xr.Dataset(found)


def _numbers_kept(counts: list[int] | None, filters: int, chosen: int) -> list[int]:
    """The numbers of filters kept, in increasing order."""
    if counts is None and filters <= ALL_NUMBERS:
        return list(range(filters + 1))
    if counts is None:
        counts = [0, *(2**power for power in range(filters.bit_length()))]
    return sorted({n for n in (*counts, chosen) if n <= filters} | {filters})


def _correlations(predicted: xr.DataArray, test: xr.Dataset) -> xr.Dataset:
    """Correlations with the mean response, and with the rate where it is known.

    `correlation (against, cell)` and, for several cells, `correlation_of_mean (against)`.
    """
    known = {"response": mean_response(test).astype(float)}
    if "rate" in test:
        known["rate"] = test["rate"]
    scores = []
    for observed in known.values():
        constant = reason(predicted, observed) == CONSTANT_PREDICTION
        one = {"correlation": correlation(predicted, observed).where(~constant, 0)}
        if predicted.sizes["cell"] > 1:
            of_mean = correlation_of_mean(predicted, observed)
            left = observed.notnull().any("frame") & ~constant
            one["correlation_of_mean"] = of_mean.where(~constant.any() | left.any(), 0)
        scores.append(xr.Dataset(one))
    joined: xr.Dataset = xr.concat(scores, "against").assign_coords(against=list(known))
    return joined


def _of_population(group: xr.Dataset) -> bool:
    """Whether each model was fitted to several cells."""
    return "correlation_of_mean" in group


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


def _table_of_populations(result: xr.DataTree, against: str) -> pd.DataFrame:
    """A row for each number of filters kept, with the mean CC and the population CC."""
    frames = []
    for name, group in groups(result).items():
        at = group.sel(against=against, drop=True)
        at_random = {
            "mean correlation": at["correlation_random"].mean("cell"),
            "correlation of mean": at["correlation_of_mean_random"],
        }
        columns = xr.Dataset(
            {
                "mean correlation": at["correlation"].mean("cell"),
                "correlation of mean": at["correlation_of_mean"],
                **{f"{n}, random": values.mean("draw") for n, values in at_random.items()},
                **{f"{n}, sd of random": values.std("draw") for n, values in at_random.items()},
            }
        )
        frame = columns.to_dataframe().reset_index().rename(columns={"kept": "filters kept"})
        frame.insert(0, "model", name)
        frames.append(frame.dropna(subset=["mean correlation"]))
    table = pd.concat(frames, ignore_index=True)
    first = [*(name for name in points(result) if name in table), "filters kept"]
    return table[[*first, *columns.data_vars]]


def _sorted_cases(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """The first models and points, their filters in the order of the ranking."""
    for label, case in islice(cases(result), CASES):
        case = case.isel(filter=case["rank"].notnull().values)
        yield label, case.isel(filter=np.argsort(case["rank"].values)[:SHOWN])


def _draw_filters(figure: Any, result: xr.DataTree, rows: int) -> None:
    """The first filters in their order, in space and time."""
    grid = figure.subplots(2 * rows, SHOWN, squeeze=False, height_ratios=[1, 0.45] * rows)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for row, (label, case) in enumerate(_sorted_cases(result)):
        images, courses = grid[2 * row], grid[2 * row + 1]
        images[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        for index in range(case.sizes["filter"]):
            one = case.isel(filter=index)
            temporal = one.get("filter_temporal")
            draw_field(images[index], in_time(one["filter_image"], temporal))
            title = f"{float(one['morans_i']):.2f}"
            if temporal is not None:
                title += f" ({float(one['temporal_regularity']):.2f})"
                courses[index].plot(-one["lag"], temporal, color="0.3", lw=1)
                courses[index].axhline(0, color="0.8", lw=0.6, zorder=0)
            images[index].set_title(title, fontsize=7, pad=2)


def _scale(axis: Any, by_model: dict[str, xr.Dataset]) -> None:
    """A logarithmic axis for the numbers of filters of large networks."""
    if max(group.sizes["filter"] for group in by_model.values()) > ALL_NUMBERS:
        kept = sorted({int(n) for group in by_model.values() for n in group["kept"].values})
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks(kept, [str(n) for n in kept], fontsize=8)
        axis.minorticks_off()


def _draw_curve(axis: Any, values: xr.DataArray, color: str, style: str, label: str) -> None:
    """Draws mean and standard deviation over all dimensions but the number of filters kept."""
    others = [dim for dim in values.dims if dim != "kept"]
    # The numbers kept of other points of a sweep may differ.
    values = values.dropna("kept", how="all")
    mean, spread = values.mean(others), values.std(others)
    axis.plot(values["kept"], mean, style, color=color, label=label)
    axis.fill_between(values["kept"], mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
