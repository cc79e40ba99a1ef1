"""Cell types: clusters of the feature weights of a population (Klindt et al. 2017, 4.5)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.signal import correlate2d

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups
from retinakit.report import rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 6


class CellTypesConfig(Config):
    """Options of the clustering."""

    method: Literal["largest", "kmeans"] = Field(
        "largest",
        description="'largest': a cell belongs to the feature of its largest absolute weight, as "
        "in Klindt et al.; 'kmeans': k-means clusters of the cells' weights, normalised to norm 1.",
    )
    clusters: int | None = Field(
        None,
        ge=1,
        description="Number of k-means clusters; by default the number of features.",
    )


class CellTypes(Analysis):
    """Clusters of the cells by their feature weights, compared with the true cell types.

    The result has the `feature_weight (cell, feature)`, the `cluster (cell)` and the `selectivity
    (cell)`, the largest |weight| divided by the sum of |weights|, which is 1 for a cell with one
    nonzero weight. For a network of one layer and one lag without channels, `cluster_kernel
    (cluster_index, kernel_y, kernel_x)` is the mean over the cells of a cluster of Σ_k weight_k
    kernel_k times the peak of the cell's mask.

    If the group `truth` has the `cell_type`, the result has `confusion (type, cluster_index)` in
    cells, `assigned (type)`, the cluster of each type by the Hungarian method (-1 for none),
    `accuracy`, the fraction of the cells in the cluster of their type, and `rand`, the adjusted
    Rand index. If it has the kernels of the types, `kernel_match (type)` is the largest cosine
    over shifts of the true kernel with the kernel of the assigned cluster. A shift of the kernel
    can be compensated by the masks.

    Raises:
        UserError: if the model has no feature weights.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.what_where import WhatWhere
        >>> options = {"filters": [2], "kernels": [3], "lags": 3, "steps": 10}
        >>> model, recording = WhatWhere.with_options(**options), small_recording()
        >>> _ = model.fit(recording)
        >>> result = CellTypes.with_options(method="largest").run(model, recording)
        >>> dict(result["feature_weight"].sizes), result["cluster"].dims
        ({'cell': 2, 'feature': 2}, ('cell',))
    """

    Config = CellTypesConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        parameters = model.parameters()
        if "feature_weight" not in parameters:
            raise UserError(
                f"a {type(model).__name__} has no parameter 'feature_weight' to cluster; use "
                "what_where with a factorized readout"
            )
        weights = parameters["feature_weight"].transpose("cell", "feature")
        magnitude = abs(weights)
        total = magnitude.sum("feature")
        cluster = self._clusters(weights)
        names = np.arange(self._number(weights))
        result = xr.Dataset(
            {
                "feature_weight": weights,
                "cluster": ("cell", cluster),
                "selectivity": magnitude.max("feature") / total.where(total > 0),
            },
            coords={"cluster_index": names},
        )
        kernels = _read_kernels(parameters)
        if kernels is not None:
            means = [
                kernels[cluster == name].mean(0) if (cluster == name).any() else 0 * kernels[0]
                for name in names
            ]
            result["cluster_kernel"] = (("cluster_index", "kernel_y", "kernel_x"), np.stack(means))
            result = result.assign_coords({d: parameters[d] for d in ("kernel_y", "kernel_x")})
        truth = data["truth"].to_dataset() if "truth" in data.children else xr.Dataset()
        return result.merge(_compared(result, truth)) if "cell_type" in truth else result

    def _number(self, weights: xr.DataArray) -> int:
        features = weights.sizes["feature"]
        if self.config.method == "largest":
            return features
        return min(self.config.clusters or features, weights.sizes["cell"])

    def _clusters(self, weights: xr.DataArray) -> NDArray[np.int64]:
        """The cluster of each cell (cell,)."""
        values = weights.values
        if self.config.method == "largest":
            return np.abs(values).argmax(1)
        from sklearn.cluster import KMeans

        norm = np.linalg.norm(values, axis=1, keepdims=True)
        unit = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
        found = KMeans(self._number(weights), n_init=10, random_state=self.seed).fit(unit)
        return np.asarray(found.labels_, np.int64)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(_known(result))[:MOST_ROWS]
        figure = Figure(figsize=(9.5, 2.7 * len(shown)), layout="constrained")
        axes = figure.subplots(len(shown), 3, squeeze=False)
        for (weights, confusion, kernels), (label, case) in zip(axes, shown, strict=True):
            _draw_weights(weights, case)
            weights.set_title(label, loc="left", fontsize=9)
            _draw_confusion(confusion, case)
            _draw_kernels(kernels, case)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        accuracies = [
            f"{float(case['accuracy']):.0%}" for _, case in cases(result) if "accuracy" in case
        ]
        known = (
            " Fraction of the cells in the cluster of their type: "
            f"{', '.join(accuracies[:MOST_ROWS])}."
            if accuracies
            else ""
        )
        return (
            "Left: feature weights of the cells, coloured or sorted by the true type where it is "
            "known. Middle: number of cells of each true type in each cluster, or number of cells "
            f"in each cluster. Right: mean kernel of the cells of each cluster.{known}"
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        lines = []
        for name, group in groups(result).items():
            numbers = group[["selectivity"]].mean("cell")
            for score in ("accuracy", "rand"):
                if score in group:
                    numbers[score] = group[score]
            if "kernel_match" in group:
                numbers["kernel_match"] = group["kernel_match"].mean("type")
            lines.append(rows(name, numbers))
        return pd.concat(lines, ignore_index=True)


def _read_kernels(parameters: xr.Dataset) -> NDArray[Any] | None:
    """Σ_k w_k kernel_k times the mask's peak, (cell, kernel_y, kernel_x), for one layer and lag."""
    kernel = parameters["kernel"]
    if "kernel_2" in parameters or "channel" in kernel.dims or kernel.sizes["lag"] > 1:
        return None
    images = kernel.isel(lag=0).transpose("filter", "kernel_y", "kernel_x").values
    weights = parameters["feature_weight"].transpose("cell", "feature").values
    masks = parameters["mask"].values.reshape(len(weights), -1)
    peak = np.take_along_axis(masks, np.abs(masks).argmax(1)[:, None], 1)
    return np.einsum("cf,fyx->cyx", weights * peak, images)


def _compared(result: xr.Dataset, truth: xr.Dataset) -> xr.Dataset:
    from sklearn.metrics import adjusted_rand_score

    types, cluster = truth["cell_type"].values, result["cluster"].values
    names = np.unique(types)
    confusion = np.zeros((len(names), result.sizes["cluster_index"]), np.int64)
    np.add.at(confusion, (np.searchsorted(names, types), cluster), 1)
    matched, columns = linear_sum_assignment(-confusion)
    assigned = np.full(len(names), -1)  # with fewer clusters than types, some types have none
    assigned[matched] = columns
    compared = xr.Dataset(
        {
            "cell_type": truth["cell_type"],
            "confusion": (("type", "cluster_index"), confusion),
            "assigned": ("type", assigned),
            "accuracy": confusion[matched, columns].sum() / len(types),
            "rand": float(adjusted_rand_score(types, cluster)),
        },
        coords={"type": names, "cluster_index": result["cluster_index"], "cell": result["cell"]},
    )
    if "kernel" in truth and "cluster_kernel" in result:
        known = truth["kernel"].transpose("type", "kernel_y", "kernel_x").values
        read = result["cluster_kernel"].values
        compared["kernel_match"] = (
            "type",
            [
                _cosine(read[index], known[place]) if index >= 0 else np.nan
                for place, index in enumerate(assigned)
            ],
        )
        true_dims = ("type", "true_kernel_y", "true_kernel_x")
        compared["true_kernel"] = (true_dims, known)
        sides = dict(zip(true_dims[1:], known.shape[1:], strict=True))
        compared = compared.assign_coords({d: np.arange(n) for d, n in sides.items()})
    return compared


def _cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(correlate2d(first, second).max()) / norm if norm else np.nan


def _known(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Every point of the sweeps, without the cells and features that only other points have."""
    for label, case in cases(result):
        weights = case["feature_weight"]
        yield (
            label,
            case.isel(
                cell=np.flatnonzero(weights.notnull().any("feature")),
                feature=np.flatnonzero(weights.notnull().any("cell")),
            ),
        )


def _draw_weights(axis: Any, case: xr.Dataset) -> None:
    weights = case["feature_weight"].transpose("cell", "feature").values
    types = case["cell_type"].values if "cell_type" in case else np.zeros(len(weights))
    if weights.shape[1] == 2:
        for index, name in enumerate(np.unique(types)):
            axis.plot(*weights[types == name].T, ".", ms=3, color=f"C{index}", alpha=0.6)
        axis.axhline(0, color="0.8", lw=0.6, zorder=0)
        axis.axvline(0, color="0.8", lw=0.6, zorder=0)
        axis.set(xlabel="weight of feature 0", ylabel="weight of feature 1")
        return
    order = np.lexsort((case["cluster"].values, types))
    limit = float(np.abs(weights).max(initial=0)) or 1.0
    shown = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    axis.imshow(weights[order], aspect="auto", **shown)
    axis.set(xlabel="feature", ylabel="cell")


def _draw_confusion(axis: Any, case: xr.Dataset) -> None:
    if "confusion" not in case:
        clusters, counts = np.unique(case["cluster"].values, return_counts=True)
        axis.bar(clusters, counts, color="0.6")
        axis.set(xlabel="cluster", ylabel="number of cells")
        return
    counts = case["confusion"].transpose("type", "cluster_index").fillna(0).values
    axis.imshow(counts, cmap="Greys", vmin=0)
    if counts.size <= 64:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > counts.max() / 2 else "black"
            axis.text(column, row, int(count), ha="center", va="center", color=color, fontsize=8)
    axis.set(xlabel="cluster", ylabel="true type")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.get_major_locator().set_params(integer=True)


def _draw_kernels(axis: Any, case: xr.Dataset) -> None:
    axis.axis("off")
    if "cluster_kernel" not in case:
        return
    read = case["cluster_kernel"].transpose("cluster_index", "kernel_y", "kernel_x").values
    read = read[np.isfinite(read).all((1, 2))][:8]
    limit = float(np.abs(read).max(initial=0)) or 1.0
    axis.imshow(np.concatenate(read, 1), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title("mean kernels of the clusters", fontsize=9)
