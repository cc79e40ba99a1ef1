"""Spike-triggered non-negative matrix factorization (Liu et al. 2017), which finds subunits."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import (
    Analysis,
    Config,
    UserError,
    full_history,
    groups,
    mean_response,
    points,
    sweep_dims,
)
from retinakit.report import draw_field
from retinakit.spikes import morans_i, receptive_field, separate, sta

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class STNMFConfig(Config):
    """Options of the factorization."""

    lags: int = Field(
        20,
        ge=1,
        description="Length of the temporal filter in frames; 1 for a stimulus of "
        "temporal_collapse.",
    )
    modules: int = Field(
        20, ge=2, description="Number of modules; more than the subunits that are expected."
    )
    sparsity: float = Field(1.7, ge=0, description="Weight of the modules' L1 norm.")
    iterations: int = Field(
        500, ge=1, description="Number of alternating updates of weights and modules."
    )
    starts: int = Field(
        5,
        ge=1,
        description="Number of factorizations from different initial modules; the one with the "
        "smallest objective is kept.",
    )
    localised: float = Field(
        0.25, description="Moran's I above which a module counts as a localised subunit."
    )
    crop: int | None = Field(
        None,
        ge=3,
        description="Side of a square crop around the receptive field's peak, in checks; null: the "
        "whole stimulus.",
    )


class STNMF(Analysis):
    """Factorization of a cell's spike-triggered images into modules, some of them subunits.

    The stimulus before each spike is averaged over lags with the temporal filter of the
    spike-triggered average, which gives one image per spike. The images V (pixel, spike) are
    factorized as V ≈ W H with sparse modules W ≥ 0 and weights H of either sign (Liu et al. 2017;
    see `factorize`). A module whose Moran's I is above `localised` counts as a subunit.

    The result has `module_image (cell, module, y, x)` of unit norm, in the order of decreasing
    |weight|; `weight (cell, module)`, the mean weight over spikes times the norm of the module;
    `morans_i` and `subunit (cell, module)`, whether the module counts as a subunit; `residual
    (cell)`, |V - W H| / |V|; and where the group `truth` has subunits, `match (cell, subunit_)`,
    the cosine of each true subunit with the closest module.

    Raises:
        UserError: if the stimulus has channels, or a cell has fewer spikes than modules, or there
            are more than two modules per check.

    Example:
        >>> from retinakit.testing import small_recording
        >>> analysis = STNMF.with_options(lags=5, modules=4, iterations=20)
        >>> result = analysis.run(small_recording())
        >>> dict(result["module_image"].sizes)
        {'cell': 2, 'module': 4, 'y': 8, 'x': 8}
    """

    Config = STNMFConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 5, "modules": 4, "iterations": 20}

    def run(self, data: xr.DataTree) -> xr.Dataset:
        train = data["train"].to_dataset()
        if "channel" in train["stimulus"].dims:
            raise UserError("the stimulus has channels; stnmf takes one without")
        results = [self._one_cell(train.isel(cell=[i])) for i in range(train.sizes["cell"])]
        result: xr.Dataset = xr.concat(results, "cell", join="outer")
        if "truth" in data.children and "subunit_weight" in data["truth"].to_dataset():
            truth = data["truth"].to_dataset()["subunit_weight"]
            if result.sizes["y"] == truth.sizes["y"] and result.sizes["x"] == truth.sizes["x"]:
                result = result.assign(match=_best_match(result["module_image"], truth))
        return result

    def _one_cell(self, split: xr.Dataset) -> xr.Dataset:
        c = self.config
        average = sta(split, c.lags)["sta"].isel(cell=0)
        if c.crop is not None:
            split = split.isel(_around_peak(average, c.crop))
            average = average.isel(_around_peak(average, c.crop))
        images = effective_images(split, separate(average)["temporal"].values)
        checks = images[0].size if len(images) else c.modules
        if c.modules > 2 * checks:
            raise UserError(
                f"modules is {c.modules}, and the field of {checks} checks allows at most "
                f"{2 * checks}; make modules smaller"
            )
        if len(images) < c.modules:
            raise UserError(
                f"cell {split['cell'].item()} has {len(images)} spikes, fewer than the "
                f"{c.modules} modules; make modules smaller"
            )
        flat = images.reshape(len(images), -1)
        # The first start does not depend on the seed, and the others are random.
        randoms = [None, *(np.random.default_rng([self.seed, i]) for i in range(1, c.starts))]
        modules, weights, residual, _ = min(
            (factorize(flat.T, c.modules, c.sparsity, c.iterations, random) for random in randoms),
            key=lambda found: found[3],
        )
        norm = np.linalg.norm(modules, axis=0)
        mean = weights.mean(1) * norm
        order = np.argsort(-np.abs(mean))
        unit = np.divide(modules, norm, out=np.zeros_like(modules), where=norm > 0)
        coords: dict[str, Any] = {
            "module": np.arange(c.modules),
            **{dim: split[dim] for dim in ("y", "x") if dim in split.coords},
        }
        shape = (c.modules, *images.shape[1:])
        image = xr.DataArray(unit.T[order].reshape(shape), coords, ("module", "y", "x"))
        autocorrelation = morans_i(image)
        return xr.Dataset(
            {
                "module_image": image,
                "weight": ("module", mean[order]),
                "morans_i": autocorrelation,
                "subunit": autocorrelation > c.localised,
                "residual": residual,
                "spikes": len(images),
            }
        ).expand_dims(cell=split["cell"].values)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        rows = []
        for name, group in groups(result).items():
            point = group.isel({dim: -1 for dim in sweep_dims(group) if dim != "cell"})
            rows += [
                (f"{name}\ncell {cell}", point.sel(cell=cell)) for cell in point["cell"].values
            ]
        rows = rows[:12]
        columns = min(10, max(row.sizes["module"] for _, row in rows))
        figure = Figure(figsize=(1.15 * columns + 1.3, 1.35 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row_axes, (label, row) in zip(axes, rows, strict=True):
            row_axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for index, axis in enumerate(row_axes):
                axis.set(xticks=[], yticks=[], frame_on=False)
                draw_field(axis, row["module_image"][index])
                weight = "bold" if bool(row["subunit"][index]) else "normal"
                axis.set_title(
                    f"I = {float(row['morans_i'][index]):.2f}", fontsize=8, pad=2, fontweight=weight
                )
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return (
            "Modules of the spike-triggered images, in the order of decreasing weight, with their "
            f"Moran's I. It is bold if it is above {self.config.localised:g}, where a module "
            "counts as a subunit."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = group[["spikes", "residual"]].to_dataframe()
            columns["subunits"] = group["subunit"].sum("module").to_series()
            if "match" in group:
                columns["found (≥ 0.85)"] = (group["match"] >= 0.85).sum("subunit_").to_series()
            columns = columns.reset_index()
            columns.insert(0, "model", name)
            frames.append(columns)
        table = pd.concat(frames, ignore_index=True)
        first = points(result)
        return table[[*first, *[c for c in table if c not in first]]].rename(
            columns={"model": "dataset"}
        )


def effective_images(split: xr.Dataset, temporal: NDArray[Any]) -> NDArray[np.float32]:
    """The weighted sum over lags of the stimulus before each spike of a cell, (spike, y, x).

    A bin with n spikes gives n equal images. A mean over repeats is rounded to whole spikes.

    Args:
        split: a split of a recording with one cell.
        temporal: the weight of each lag, (lag,).

    Example:
        >>> from retinakit.testing import small_recording
        >>> split = small_recording(cells=1)["train"].to_dataset()
        >>> effective_images(split, np.array([0.5, 1.0, 0.5])).shape[1:]
        (8, 8)
    """
    stimulus = split["stimulus"].values
    counts = np.nan_to_num(np.asarray(mean_response(split))[:, 0])
    counts = np.where(full_history(split["segment"], len(temporal)), np.rint(counts), 0)
    frames = np.repeat(np.arange(len(counts)), counts.astype(int))
    images = np.zeros((len(frames), *stimulus.shape[1:]), np.float32)
    for lag, weight in enumerate(np.asarray(temporal, np.float32)):
        images += weight * stimulus[frames - lag]
    return images


def factorize(
    images: NDArray[np.float32],
    modules: int,
    sparsity: float,
    iterations: int,
    random: np.random.Generator | None = None,
) -> tuple[NDArray[Any], NDArray[Any], float, float]:
    """Semi-NMF: V (pixel, spike) ≈ W (pixel, module) · H (module, spike), with W ≥ 0 and sparse.

    Minimises |V - W H|² / 2 + sparsity · Σ W over W ≥ 0 and H with rows of unit norm. Alternately,
    H is computed by least squares and its rows are normalised, and W is updated column by column
    (hierarchical alternating least squares). The updates use V only through V Vᵀ, so their cost
    does not depend on the number of spikes. The initial modules are the positive and the negative
    parts of the leading singular vectors, or, with `random`, of random rotations of them.

    Args:
        images: V.
        modules: number of modules.
        sparsity: weight of Σ W.
        iterations: number of alternating updates.
        random: generator of the random rotation; None for the singular vectors themselves.

    Returns:
        W, H, the residual |V - W H| / |V|, and the minimum of the objective.

    Example:
        >>> images = np.random.default_rng(0).standard_normal((16, 50)).astype(np.float32)
        >>> w, h, residual, _ = factorize(images, modules=4, sparsity=0.0, iterations=10)
        >>> w.shape, h.shape, bool((w >= 0).all()), 0 < residual < 1
        ((16, 4), (4, 50), True, True)
    """
    gram = images.astype(np.float64) @ images.T
    power, vectors = np.linalg.eigh(gram)
    half = min(-(-modules // 2), len(gram))
    leading = vectors[:, ::-1][:, :half] * np.sqrt(np.sqrt(np.clip(power[::-1][:half], 0, None)))
    leading *= np.sign(leading[np.abs(leading).argmax(0), np.arange(half)])
    if random is not None:
        leading = leading @ np.linalg.qr(random.standard_normal((half, half)))[0]
    w = np.concatenate([np.clip(leading, 0, None), np.clip(-leading, 0, None)], 1)[:, :modules]
    w += 1e-16
    ridge = 1e-9 * np.eye(w.shape[1])
    for _ in range(iterations):
        weights = w.T @ w
        inverse = np.linalg.solve(weights + ridge * np.trace(weights), w.T)  # H = inverse V
        norm = np.sqrt(np.clip(np.einsum("kp,pq,kq->k", inverse, gram, inverse), 1e-300, None))
        inverse /= norm[:, None]
        cross, overlap = gram @ inverse.T, inverse @ gram @ inverse.T
        for _ in range(SWEEPS):
            for k in range(w.shape[1]):
                w[:, k] += cross[:, k] - w @ overlap[:, k] - sparsity
                np.maximum(w[:, k], 0, out=w[:, k])
        w[:, w.sum(0) == 0] = 1e-16
    weights = w.T @ w
    h = np.linalg.solve(weights + ridge * np.trace(weights), w.T @ images)
    lost = float(np.linalg.norm(images - w @ h))
    # In the objective, the rows of H have unit norm.
    minimised = lost**2 / 2 + sparsity * float(w.sum(0) @ np.linalg.norm(h, axis=1))
    return w, h, lost / float(np.linalg.norm(images)), minimised


SWEEPS = 3
"""Passes over the modules for each update of the weights."""


def _around_peak(average: xr.DataArray, crop: int) -> dict[str, slice]:
    """Slices of y and x: the crop around the peak of a receptive field (lag, y, x)."""
    checks = {dim: np.arange(average.sizes[dim]) for dim in ("y", "x")}
    field = receptive_field(average.assign_coords(checks))
    found = {}
    for dim in checks:
        first = int(field[f"peak_{dim}"]) - crop // 2
        first = min(max(first, 0), max(average.sizes[dim] - crop, 0))
        found[dim] = slice(first, first + crop)
    return found


def _best_match(images: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """The cosine of each true subunit with the closest module, (cell, subunit_)."""
    known = truth.rename(subunit="subunit_")
    norm = (known**2).sum(("y", "x")) ** 0.5
    cosine = xr.dot(images, known, dim=("y", "x")) / norm
    best: xr.DataArray = cosine.max("module")
    return best.assign_coords(subunit_=truth["subunit"].values)
