"""Locations of the masks of a population, against the truth (Klindt et al. 2017, section 5.1)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups
from retinakit.report import draw_field, extended, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 6
MOST_IMAGES = 8


class MasksConfig(Config):
    """Options of the figure and of the comparison with the true locations."""

    examples: int = Field(
        4, ge=1, description="Number of masks to show, of different cell types where known."
    )
    radius: float = Field(
        2.0,
        gt=0,
        description="Largest distance, in checks, of a mask from the true location at which the "
        "location counts as found.",
    )


class Masks(Analysis):
    """Location and concentration of each cell's mask, and its distance from the true location.

    The result has `location_y` and `location_x (cell)` in checks, the middle of the window at the
    peak of |mask|; `concentration (cell)`, the fraction of Σ |mask| within one position of the
    peak; and the masks of some cells, `mask_image (cell, map_y, map_x)`, NaN for the other cells.
    If the group `truth` has locations, the result has `true_y`, `true_x` and the distance `error
    (cell)` in checks, and `aligned_error (cell)`, the distance after the median displacement of all
    cells with the same largest feature weight is subtracted. This displacement is not determined by
    the model: if a kernel is shifted, the masks that use it are shifted the other way.

    Raises:
        UserError: if the model has no masks.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.what_where import WhatWhere
        >>> options = {"filters": [2], "kernels": [3], "lags": 3, "steps": 10}
        >>> model, recording = WhatWhere.with_options(**options), small_recording()
        >>> _ = model.fit(recording)
        >>> result = Masks.with_options(examples=2).run(model, recording)
        >>> result["mask_image"].dims, result["concentration"].dims
        (('cell', 'map_y', 'map_x'), ('cell',))
    """

    Config = MasksConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        parameters = model.parameters()
        if "mask" not in parameters:
            raise UserError(
                f"a {type(model).__name__} has no parameter 'mask' to locate; use what_where with "
                "a factorized readout"
            )
        mask = parameters["mask"].transpose("cell", "map_y", "map_x")
        magnitude = np.abs(mask.values)
        cells, height, width = magnitude.shape
        top, left = np.unravel_index(magnitude.reshape(cells, -1).argmax(1), (height, width))
        padded = np.pad(magnitude, ((0, 0), (1, 1), (1, 1)))
        near = [p[y : y + 3, x : x + 3].sum() for p, y, x in zip(padded, top, left, strict=True)]
        total = magnitude.sum((1, 2))
        found = np.stack([mask["centre_y"].values[top], mask["centre_x"].values[left]], 1)
        result = xr.Dataset(
            {
                "location_y": ("cell", found[:, 0], {"units": "check"}),
                "location_x": ("cell", found[:, 1], {"units": "check"}),
                "concentration": ("cell", near / np.where(total > 0, total, np.nan)),
            },
            coords={"cell": mask["cell"]},
        )
        truth = data["truth"].to_dataset() if "truth" in data.children else xr.Dataset()
        if "location_y" in truth and "location_x" in truth:
            known = np.stack([truth["location_y"], truth["location_x"]], 1)
            displaced = found - known
            feature = np.abs(parameters["feature_weight"].transpose("cell", ...).values).argmax(1)
            aligned = displaced.astype(float)
            for name in np.unique(feature):
                aligned[feature == name] -= np.median(displaced[feature == name], 0)
            result["true_y"], result["true_x"] = (("cell", known[:, i]) for i in range(2))
            result["error"] = ("cell", np.linalg.norm(displaced, axis=1))
            result["aligned_error"] = ("cell", np.linalg.norm(aligned, axis=1))
        types = truth["cell_type"].values if "cell_type" in truth else np.zeros(cells, int)
        shown = _examples(types, self.config.examples)
        images = np.full_like(mask.values, np.nan)
        images[shown] = mask.values[shown]
        result["mask_image"] = (("cell", "map_y", "map_x"), images)
        return result.assign_coords(map_y=mask["centre_y"].values, map_x=mask["centre_x"].values)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(cases(result))[:MOST_ROWS]
        examples = [_shown_cells(case) for _, case in shown]
        images = max(map(len, examples))
        figure = Figure(figsize=(3.2 + 1.9 * images, 2.3 * len(shown)), layout="constrained")
        axes = figure.subplots(len(shown), 1 + images, squeeze=False)
        for row, (label, case), cells in zip(axes, shown, examples, strict=True):
            self._draw_locations(row[0], case)
            row[0].set_title(label, loc="left", fontsize=9)
            for axis in row[1 + len(cells) :]:
                axis.axis("off")
            for axis, cell in zip(row[1:], cells, strict=False):
                _draw_mask(axis, case.sel(cell=cell))
        return figure

    def _draw_locations(self, axis: Any, case: xr.Dataset) -> None:
        if "error" not in case:
            axis.plot(case["location_x"], case["location_y"], ".", ms=3)
            axis.set(xlabel="x (checks)", ylabel="y (checks)", aspect="equal")
            axis.invert_yaxis()
            return
        for name, style in (("error", "-"), ("aligned_error", ":")):
            values = np.sort(case[name].dropna("cell").values)
            part = np.arange(1, len(values) + 1) / len(values)
            label = name.replace("_", " ")
            axis.plot(values, part, style, color="C0", label=label, drawstyle="steps-post")
        axis.axvline(self.config.radius, color="0.8", lw=0.8)
        axis.set(xlabel="distance (checks)", ylabel="fraction of cells", ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize=7)

    def caption(self, result: xr.DataTree) -> str:
        found = [
            f"{float((case['error'] <= self.config.radius).sum() / case['error'].count()):.0%}"
            for _, case in cases(result)
            if "error" in case
        ]
        part = (
            f" Fraction of the cells within {self.config.radius:g} checks of the true location: "
            f"{', '.join(found[:MOST_ROWS])}."
            if found
            else ""
        )
        return (
            "Left: cumulative distribution of the distance between masks and true locations, or "
            "the locations of the masks if the true ones are not known. Right: masks of some "
            f"cells; the cross is the true location.{part}"
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        lines = []
        for name, group in groups(result).items():
            numbers = xr.Dataset({"concentration": group["concentration"].mean("cell")})
            if "error" in group:
                count = group["error"].count("cell")
                numbers["median error"] = group["error"].median("cell")
                numbers["median aligned error"] = group["aligned_error"].median("cell")
                numbers["found"] = (group["error"] <= self.config.radius).sum("cell") / count
            lines.append(rows(name, numbers))
        return pd.concat(lines, ignore_index=True)


def _examples(types: Any, number: int) -> Any:
    """Indices of cells, the first of each type, then the second of each type, and so on."""
    order = np.zeros(len(types), int)
    for name in np.unique(types):
        of_type = np.flatnonzero(types == name)
        order[of_type] = np.arange(len(of_type))
    return np.lexsort((types, order))[:number]


def _shown_cells(case: xr.Dataset) -> Any:
    """The cells that have an image, at most MOST_IMAGES: several recordings have many."""
    known = case["mask_image"].notnull().any(("map_y", "map_x"))
    return case["cell"].values[known.values][:MOST_IMAGES]


def _draw_mask(axis: Any, cell: xr.Dataset) -> None:
    # Masks of recordings with fields of different sizes are stored in the larger one.
    image = cell["mask_image"].dropna("map_y", how="all").dropna("map_x", how="all")
    place = extended(image)
    axis.axis("off")
    draw_field(axis, image)
    axis.set_title(f"cell {cell['cell'].item()}", fontsize=8)
    if "true_y" in cell:
        y = float(cell["true_y"]) if len(place) == 2 else 0.0
        x = float(cell["true_y"] if place == ["map_y"] else cell["true_x"])
        axis.plot(x, y, "k+", ms=9, mew=0.8)
