"""What the feature maps of a network respond to (Yan et al. 2020, II-C, Figs 4b and 9b)."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import norm
from torch import Tensor
from torch.nn.functional import conv2d

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
    cases,
    groups,
    lag_coordinate,
    points,
)
from retinakit.spikes import morans_i, morans_i_z, separate, space_and_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCK = 250
"""Noise stimuli that are shown at a time."""


class FeaturesConfig(Config):
    """Which maps are looked at, and how their features are classed."""

    layer: int = Field(1, ge=1, description="The convolution layer, counted from 1.")
    position: Literal["centre", "mean", "dense-weighted"] = Field(
        "centre",
        description="What stands for a map: its middle; the mean of all positions, as in Yan et "
        "al.'s code, which blurs a feature by the size of the map; or the mean weighted by the "
        "absolute output weights (of the last layer), which shows it where it acts.",
    )
    samples: int = Field(10_000, ge=1, description="Stimuli of independent normal numbers.")
    mixed: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A feature is mixed if the smaller of its ON and OFF peaks is this part of the "
        "larger, or more.",
    )
    significance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Largest p-value of a feature that is not noise, in a one-sided z-test of its "
        "Moran's I against independent normal values.",
    )


class Features(Analysis):
    """The average stimulus of each filter, weighted by its response to noise.

    F = Σ a s / Σ a over stimuli s of independent N(0, 1) values, where a ≥ 0 is the activation of
    the filter's map after its ReLU. A feature in space and time is taken apart by singular value
    decomposition. Polarity is that of light at the peak of the time course (for Version I of the
    filter that collapsed the stimulus), so that red is ON and blue is OFF. A feature is noise if
    its Moran's I is not significant, ON or OFF by its larger peak, and mixed if the other peak is
    comparable.

    The result has `feature (filter, y, x)` and, of several lags, `feature_temporal (filter, lag)`;
    `filter_image (filter, kernel_y, kernel_x)` and `filter_temporal` of the first layer; `morans_i`
    and `z` of the features; `peak_ratio`, the smaller peak over the larger; and `kind (filter)`, a
    number that its attributes explain. A filter that never responds has no feature (NaN), and
    counts as noise.
    """

    Config = FeaturesConfig
    quick: ClassVar[dict[str, Any]] = {"samples": 200}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        c, parameters = self.config, model.parameters()
        if "kernel_y" not in parameters.dims:
            raise UserError(
                f"a {type(model).__name__} has no convolution filters, so it has no feature maps; "
                "name models that have some, such as cnn"
            )
        if f"kernel_{c.layer}" not in parameters and c.layer > 1:
            raise UserError(f"the model has no convolution layer {c.layer}; choose a lower layer")
        filters = space_and_time(model)  # refuses channels
        test = data["test"].to_dataset()
        field = (test.sizes["y"], test.sizes["x"])
        values, activation = self._average(parameters, field)
        lags = np.arange(values.shape[1])
        coords: dict[str, Any] = lag_coordinate(lags, test.attrs["frame_interval"])
        coords |= {dim: test[dim].variable for dim in ("y", "x") if dim in test.coords}
        average = xr.DataArray(values, coords, ("filter", "lag", "y", "x"))
        if average.sizes["lag"] == 1:
            sign = _polarity(data)
            result = xr.Dataset({"feature": sign * average.isel(lag=0, drop=True)})
        else:
            parts = separate(average)
            sign = _sign_at_peak(parts["temporal"])
            feature = (sign * parts["spatial"]).where(average.notnull().all(("lag", "y", "x")))
            result = xr.Dataset({"feature": feature, "feature_temporal": sign * parts["temporal"]})
        if c.layer == 1:
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
        structured = z > norm.isf(c.significance)
        result = result.assign(
            morans_i=morans_i(feature),
            z=z,
            peak_ratio=ratio,
            activation=("filter", activation),
            kind=kind.where(structured, KINDS["noise"]),
        )
        result["kind"].attrs = {
            "flag_values": list(KINDS.values()),
            "flag_meanings": " ".join(KINDS),
        }
        return result.assign_coords(filter=np.arange(len(activation)))

    def _average(
        self, parameters: xr.Dataset, field: tuple[int, int]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The weighted average (filter, lag, y, x), and the mean activation (filter)."""
        c = self.config
        network = Network(parameters, field)
        generator = torch.Generator().manual_seed(self.seed)
        total: Any = 0
        responses: Any = 0
        with torch.no_grad():
            for first in range(0, c.samples, BLOCK):
                shape = (min(BLOCK, c.samples - first), network.lags, *field)
                stimuli = torch.randn(shape, generator=generator)
                maps = network.maps(stimuli, c.layer)
                activation = torch.einsum("nkyx,kyx->nk", maps, self._weight(network, maps))
                total = total + (activation.T @ stimuli.flatten(1)).double()
                responses = responses + activation.double().sum(0)
        average = total / torch.where(responses > 0, responses, np.nan)[:, None]
        return (
            average.view(-1, network.lags, *field).numpy(),
            (responses / c.samples).numpy(),
        )

    def _weight(self, network: "Network", maps: Tensor) -> Tensor:
        """How much each position of a map counts, (filter, map_y, map_x)."""
        c = self.config
        weight = torch.zeros(maps.shape[1:])
        if c.position == "mean":
            return weight + 1 / weight[0].numel()
        if c.position == "centre":
            weight[:, (weight.shape[1] - 1) // 2, (weight.shape[2] - 1) // 2] = 1
            return weight
        if c.layer != len(network.layers):
            raise UserError(
                "position 'dense-weighted' is of the last convolution layer, which is "
                f"{len(network.layers)}; choose that layer, or another position"
            )
        weight = network.output.abs().sum(0)
        return weight / weight.sum((1, 2), keepdim=True)

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
            "centre": "in the middle of its map",
            "mean": "over all positions of its map",
            "dense-weighted": "over the positions of its map, by their absolute output weight",
        }[c.position]
        timed = any("feature_temporal" in group for group in groups(result).values())
        return (
            f"Filters and what they respond to {shown}: the average of {c.samples:,} stimuli of "
            f"noise, weighted by the activation in layer {c.layer}. Red is ON and blue is OFF, "
            "each image in its own scale; with Moran's I, the largest first. Noise: it is not "
            f"significant (p ≥ {c.significance:g}); mixed: the smaller peak is {c.mixed:g} of the "
            "larger or more; silent: never active."
            + (" Time runs to the right, up to the response." if timed else "")
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            counts = {kind: (group["kind"] == code).sum("filter") for kind, code in KINDS.items()}
            # Without a sweep there is one row, of no dimension.
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


class Network:
    """The convolution layers of a model, from its parameters.

    Args:
        parameters: `kernel (filter, lag, kernel_y, kernel_x)`, `kernel_bias (filter)`, those of
            deeper layers, `kernel_2 (filter, filter_in, deeper_y, deeper_x)`, `kernel_bias_2` and
            so on, and `output_weight (cell, filter, map_y, map_x)`, whose coordinates count the
            checks of the field.
        field: height and width of the field, in checks.

    Raises:
        UserError: if the maps do not come to the size of the output weights.
    """

    def __init__(self, parameters: xr.Dataset, field: tuple[int, int]):
        def tensor(name: str, *dims: str) -> Tensor:
            return torch.from_numpy(parameters[name].transpose(*dims).values.astype(np.float32))

        kernel = tensor("kernel", "filter", "lag", "kernel_y", "kernel_x")
        self.lags = kernel.shape[1]
        self.layers = [(kernel, tensor("kernel_bias", "filter"))]
        while (deeper := f"kernel_{len(self.layers) + 1}") in parameters:
            weights = tensor(deeper, "filter", "filter_in", "deeper_y", "deeper_x")
            bias = tensor(f"kernel_bias_{len(self.layers) + 1}", "filter")
            self.layers.append((weights, bias))
        self.output = tensor("output_weight", "cell", "filter", "map_y", "map_x")
        steps = [np.diff(parameters[name]) for name in ("map_y", "map_x")]
        self.stride = int(next((step[0] for step in steps if len(step)), 1))
        lost = sum(weights.shape[-1] - 1 for weights, _ in self.layers[1:])
        first = [
            (side - own) // self.stride + 1
            for side, own in zip(field, kernel.shape[2:], strict=True)
        ]
        last = list(self.output.shape[2:])
        if last not in (first, [side - lost for side in first]):
            raise UserError(
                f"maps of a field of {field[0]} x {field[1]} checks do not have the size of the "
                "model's output weights; name the recording that it was fitted on, or one as large"
            )
        self.padding = "same" if last == first else "valid"

    def maps(self, stimuli: Tensor, layer: int) -> Tensor:
        """Activations (n, filter, map_y, map_x) of stimuli (n, lag, y, x), lag 0 the newest."""
        maps = conv2d(stimuli, *self.layers[0], stride=self.stride).relu()
        for weights, bias in self.layers[1:layer]:
            maps = conv2d(maps, weights, bias, padding=self.padding).relu()
        return maps


def _sign_at_peak(temporal: xr.DataArray) -> xr.DataArray:
    """The sign (..., ) of a time course (..., lag) where it is largest."""
    sign: xr.DataArray = xr.where(temporal.max("lag") >= -temporal.min("lag"), 1, -1)
    return sign


def _polarity(data: xr.DataTree) -> Any:
    """What a positive stimulus stands for: light (1), or dark (-1) if it was collapsed so."""
    if "collapse" not in data.children:
        return 1
    return _sign_at_peak(data["collapse"].to_dataset()["temporal"])


def _present(case: xr.Dataset) -> xr.Dataset:
    """The filters of one point of a sweep, that with the largest Moran's I first."""
    there = np.flatnonzero(case["kind"].notnull())
    order = np.argsort(-case["morans_i"].fillna(-np.inf).values[there], kind="stable")
    return case.isel(filter=there[order])


def _draw(axis: Any, name: str, one: xr.Dataset) -> None:
    values = one[name]
    if "temporal" in name:
        axis.plot(-one["lag_time"], values, color="0.3", lw=1)
        axis.axhline(0, color="0.8", lw=0.6, zorder=0)
        return
    image = values.transpose(*sorted(map(str, values.dims), reverse=True)).values  # y before x
    limit = float(np.nanmax(np.abs(image), initial=0)) or 1.0
    axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if name == "feature":
        kind, autocorrelation = list(KINDS)[int(one["kind"])], float(one["morans_i"])
        title = "silent" if np.isnan(autocorrelation) else f"{kind} {autocorrelation:.2f}"
        axis.set_title(title, fontsize=8, pad=2, color="0.5" if kind == "noise" else "k")
