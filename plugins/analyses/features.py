"""The feature of each filter of a network (Yan et al. 2020, section II-C, Figs 4b and 9b)."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field
from scipy.stats import norm

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
    cases,
    groups,
    points,
)
from retinakit.report import draw_field, in_time
from retinakit.spikes import (
    morans_i,
    morans_i_z,
    separate,
    space_and_time,
    temporal_autocorrelation,
    temporal_regularity,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 500
"""Frames of noise per block."""


class FeaturesConfig(Config):
    """Options of the features and of their classification."""

    layer: str | None = Field(
        None, description="Name of the layer, such as layer2; by default the first layer."
    )
    position: Literal["centre", "mean", "dense-weighted"] = Field(
        "centre",
        description="Activity that represents a feature map. 'centre': that of its central "
        "position; 'mean': the mean over positions, as in Yan et al.'s code, which blurs the "
        "feature; 'dense-weighted': the mean weighted by the absolute output weights, for the last "
        "layer.",
    )
    samples: int = Field(10_000, ge=1, description="Number of frames of N(0, 1) noise.")
    mixed: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A feature is mixed if the ratio of the smaller to the larger of its ON and "
        "OFF peaks is at least this.",
    )
    significance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Level of the one-sided z-test of a feature's Moran's I against independent "
        "normal values; a feature that is not significant is noise.",
    )


class Features(Analysis):
    """The response-weighted average of noise for each filter, classified as ON, OFF or mixed.

    The feature is F = Σ_t a_t s_t / Σ_t a_t (Yan et al. 2020, section II-C), where s_t is the
    history of `lags` frames of independent N(0, 1) noise and a_t ≥ 0 is the rectified activity of
    the filter's map. A feature of several lags is separated into space and time by singular value
    decomposition. Its sign is such that positive is light at the peak of the temporal filter. For
    Version I this is the filter of `temporal_collapse`. A feature is noise if its Moran's I is not
    significant, mixed if its two peaks are comparable, and otherwise ON or OFF by its larger peak.

    The result has `feature (filter, y, x)` and, for several lags, `feature_temporal (filter, lag)`;
    for the first layer, `filter_image (filter, kernel_y, kernel_x)` and `filter_temporal (filter,
    lag)`; and `morans_i`, its `z` score, `peak_ratio` (the smaller peak over the larger), the mean
    `activation` and the `kind (filter)`, whose codes are in its attributes `flag_values` and
    `flag_meanings`. A filter that is never active has a feature of NaN and counts as noise. With
    several lags, it has the `temporal_regularity` (Zheng et al. 2021, Eq 8) and the
    `temporal_autocorrelation (filter)` of the feature's temporal filter.

    Raises:
        UserError: if the model has no layers or not the given one, its stimulus has channels, or
            `position` is 'dense-weighted' and the layer has no output weights.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = Features.with_options(samples=200).run(model, recording)
        >>> dict(result["feature"].sizes)
        {'filter': 2, 'y': 8, 'x': 8}
    """

    Config = FeaturesConfig
    quick: ClassVar[dict[str, Any]] = {"samples": 200}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        c, layers = self.config, model.layers()
        if not layers:
            raise UserError(
                f"a {type(model).__name__} has no layers, so it has no feature maps; name a model "
                "with layers, such as cnn"
            )
        layer = c.layer or next(iter(layers))
        model.check_layer(layer)
        filters = space_and_time(model)  # raises if there are channels
        average, activation = self._average(model, layer)
        if average.sizes["lag"] == 1:
            sign = _polarity(data)
            result = xr.Dataset({"feature": sign * average.isel(lag=0, drop=True)})
        else:
            parts = separate(average)
            sign = _sign_at_peak(parts["temporal"])
            feature = (sign * parts["spatial"]).where(average.notnull().all(("lag", "y", "x")))
            result = xr.Dataset({"feature": feature, "feature_temporal": sign * parts["temporal"]})
        if layer == next(iter(layers)):
            own = _sign_at_peak(filters["temporal"]) if "temporal" in filters else _polarity(data)
            image = own * filters["spatial"]
            result["filter_image"] = image.rename(y="kernel_y", x="kernel_x")
            if "temporal" in filters:
                result["filter_temporal"] = own * filters["temporal"]
        feature = result["feature"]
        z = morans_i_z(feature)
        peaks = xr.concat([feature.max(("y", "x")), -feature.min(("y", "x"))], "polarity")
        ratio = peaks.min("polarity").clip(0) / peaks.max("polarity")
        sided = xr.where(peaks[0] > peaks[1], KINDS["ON"], KINDS["OFF"])
        kind = xr.where(ratio >= c.mixed, KINDS["mixed"], sided)
        several = feature.sizes["y"] * feature.sizes["x"] > 2  # or there is no autocorrelation
        structured = z > norm.isf(c.significance) if several else activation > 0
        result = result.assign(
            morans_i=morans_i(feature),
            z=z,
            peak_ratio=ratio,
            activation=activation,
            kind=kind.where(structured, KINDS["noise"]),
        )
        if "feature_temporal" in result:
            temporal = result["feature_temporal"]
            result["temporal_regularity"] = temporal_regularity(temporal)
            result["temporal_autocorrelation"] = temporal_autocorrelation(temporal)
        result["kind"].attrs = {
            "flag_values": list(KINDS.values()),
            "flag_meanings": " ".join(KINDS),
        }
        return result

    def _average(self, model: Model, layer: str) -> tuple[xr.DataArray, xr.DataArray]:
        """The weighted average (filter, lag, y, x), and the mean activity above 0 (filter)."""
        c, lags, unit = self.config, model.lags, model.layers()[layer]
        coords = model.field.drop_vars("cell").coords
        size = (model.field.sizes["y"], model.field.sizes["x"])
        random = np.random.default_rng(self.seed)
        total: Any = 0
        responses: Any = 0
        weight = None
        for first in range(0, c.samples, BLOCK):
            frames = min(BLOCK, c.samples - first)
            movie = random.standard_normal((frames + lags - 1, *size), np.float32)
            maps = model.activity(movie, layer)[lags - 1 :].transpose("frame", unit, ...).clip(0)
            weight = self._weight(model, layer, maps) if weight is None else weight
            active = (maps * weight).sum(weight.dims[1:]).values.astype(float)
            histories = [
                movie[lags - 1 - lag :][:frames].reshape(frames, -1) for lag in range(lags)
            ]
            total = total + np.stack([active.T @ history for history in histories], 1)
            responses = responses + active.sum(0)
        average = total / np.where(responses > 0, responses, np.nan)[:, None, None]
        filters = {"filter": np.arange(len(responses))}
        dims = ("filter", "lag", "y", "x")
        return (
            xr.DataArray(average.reshape(-1, lags, *size), {**coords, **filters}, dims),
            xr.DataArray(responses / c.samples, filters, ("filter",)),
        )

    def _weight(self, model: Model, layer: str, maps: xr.DataArray) -> xr.DataArray:
        """The weight of each position of a map, (unit, map_y, map_x)."""
        places = maps.dims[2:]
        weight = xr.zeros_like(maps[0]).drop_vars(["time", "segment"])
        if self.config.position == "mean":
            return weight + 1 / weight[0].size
        if self.config.position == "centre":
            weight[{dim: (weight.sizes[dim] - 1) // 2 for dim in places}] = 1
            return weight
        layers, parameters = list(model.layers()), model.parameters()
        output = parameters.get("output_weight")
        if layer != layers[-1] or output is None or output.shape[1:] != weight.shape:
            raise UserError(
                f"position 'dense-weighted' needs the output_weight of the last layer, "
                f"'{layers[-1]}', and the layer is '{layer}' of a {type(model).__name__}; choose "
                "another layer or position"
            )
        of_maps = abs(output).sum("cell").values
        return weight + of_maps / of_maps.sum((1, 2), keepdims=True)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = [(label, _present(case)) for label, case in islice(cases(result), CASES)]
        most = 4 * COLUMNS if len(shown) <= 2 else COLUMNS
        blocks = [
            (label if first == 0 else "", case.isel(filter=slice(first, first + COLUMNS)))
            for label, case in shown
            for first in range(0, min(case.sizes["filter"], most), COLUMNS)
        ]
        rows = [name for name in ROWS if any(name in case for _, case in shown)]
        columns = max(case.sizes["filter"] for _, case in blocks)
        heights = [0.5 if "temporal" in name else 1.15 for name in rows]
        figure = Figure(
            figsize=(max(columns + 1.8, 4), sum(heights) * len(blocks) + 0.3), layout="constrained"
        )
        grid = figure.subplots(
            len(blocks) * len(rows), columns, squeeze=False, height_ratios=heights * len(blocks)
        )
        for axis in grid.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for (label, case), axes in zip(
            blocks, grid.reshape(len(blocks), len(rows), columns), strict=True
        ):
            for name, line in zip(rows, axes, strict=True):
                heading = f"{label}\n{ROWS[name]}" if name == rows[0] and label else ROWS[name]
                line[0].set_ylabel(heading, rotation=0, ha="right", va="center", fontsize=9)
                for index in range(case.sizes["filter"] if name in case else 0):
                    _draw(line[index], name, case.isel(filter=index))
        return figure

    def caption(self, result: xr.DataTree) -> str:
        c = self.config
        shown = {
            "centre": "at the centre of the map",
            "mean": "averaged over the map",
            "dense-weighted": "averaged over the map with the absolute output weights",
        }[c.position]
        layer = c.layer or "the first layer"
        timed = any("feature_temporal" in group for group in groups(result).values())
        return (
            f"Filters and their features: the average of {c.samples:,} frames of noise, weighted "
            f"by the activity of {layer} {shown}. Red is ON and blue is OFF, and each image has "
            "its own colour scale. Numbers are Moran's I of the feature, the largest first. Noise: "
            f"Moran's I is not significant (p ≥ {c.significance:g}). Mixed: the smaller peak is at "
            f"least {c.mixed:g} of the larger. Silent: the filter is never active."
            + (" Time runs from left to right and ends at the response." if timed else "")
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            counts = {kind: (group["kind"] == code).sum("filter") for kind, code in KINDS.items()}
            # Without a sweep the counts have no dimension, and there is one row.
            frame = xr.Dataset(counts).expand_dims("row").to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        return table[[*(column for column in points(result) if column in table), *KINDS]]


KINDS = {"noise": 0, "ON": 1, "OFF": 2, "mixed": 3}
ROWS = {
    "filter_image": "filter",
    "filter_temporal": "in time",
    "feature": "feature",
    "feature_temporal": "in time",
}
CASES, COLUMNS = 6, 8


def _sign_at_peak(temporal: xr.DataArray) -> xr.DataArray:
    """The sign (...) of a time course (..., lag) at its largest absolute value."""
    sign: xr.DataArray = xr.where(temporal.max("lag") >= -temporal.min("lag"), 1, -1)
    return sign


def _polarity(data: xr.DataTree) -> Any:
    """1 if a positive stimulus is light, -1 if it is dark because of `temporal_collapse`."""
    if "collapse" not in data.children:
        return 1
    return _sign_at_peak(data["collapse"].to_dataset()["temporal"])


def _present(case: xr.Dataset) -> xr.Dataset:
    """The filters of one point of a sweep, in the order of decreasing Moran's I."""
    there = np.flatnonzero(case["kind"].notnull())
    order = np.argsort(-case["morans_i"].fillna(-np.inf).values[there], kind="stable")
    return case.isel(filter=there[order])


def _draw(axis: Any, name: str, one: xr.Dataset) -> None:
    values = one[name]
    if "temporal" in name:
        axis.plot(-one["lag_time"], values, color="0.3", lw=1)
        axis.axhline(0, color="0.8", lw=0.6, zorder=0)
        return
    draw_field(axis, in_time(values, one.get(f"{name.split('_')[0]}_temporal")))
    if name == "feature":
        kind, autocorrelation = list(KINDS)[int(one["kind"])], float(one["morans_i"])
        silent = not values.notnull().any()
        number = "" if np.isnan(autocorrelation) else f" {autocorrelation:.2f}"
        title = "silent" if silent else f"{kind}{number}"
        axis.set_title(title, fontsize=8, pad=2, color="0.5" if kind == "noise" else "k")
