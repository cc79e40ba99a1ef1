"""Receptive fields of a model's cells, beside the data's (Zheng et al. 2021, Figs 4, 6 and 7)."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    Progress,
    UserError,
    cases,
    groups,
    points,
    silent,
)
from retinakit.report import draw_field, extended, in_time, pixel_edges
from retinakit.spikes import (
    CELLS_AT_ONCE,
    ELLIPSE,
    FALSE_POSITIVE,
    SHAPE_INDICES,
    analytic_noise,
    field_distance,
    fit_ellipse,
    receptive_field,
    shape_indices,
    sta,
    white_noise_field,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTLINE = ELLIPSE[1:]
KEPT = ("spatial", "temporal", "separability", "peak_z", "threshold", "found", *ELLIPSE, "reason")
CASES, EXAMPLES = 4, 4
"""Largest numbers of models, and of cells of each, that are drawn."""


class WhiteNoiseReceptiveFieldConfig(Config):
    """Options of the noise and of the comparison."""

    clips: int = Field(
        20_000, ge=1, description="Number of frames of noise with a full history, 'clips'."
    )
    contrast: float = Field(
        0.5, gt=0, description="The noise is plus or minus this, in units of the stimulus."
    )
    false_positive: float = Field(
        FALSE_POSITIVE,
        gt=0,
        le=1,
        description="Probability with which noise is taken for a receptive field; 0.01 is a peak "
        "|z| of about 5. With 1, every cell counts whose field is fitted by a Gaussian.",
    )
    compare: Literal["truth", "sta", "none"] | None = Field(
        None,
        description="Receptive fields of the data. 'truth': those of the group truth; 'sta': from "
        "the spike-triggered average of the training frames, which should be white noise (name "
        "another recording of the same cells as the step's data); 'none': no comparison. By "
        "default the truth, where it has them, and otherwise the average.",
    )


class WhiteNoiseReceptiveField(Analysis):
    """Receptive fields of a model's cells from white noise, and their distance from the data's.

    The model is shown binary white noise, which is averaged with the predicted rates as weights
    (`retinakit.spikes.white_noise_field`). Each field is separated into space and time and fitted
    with a two-dimensional Gaussian by `retinakit.spikes.receptive_field`. Cells without a
    significant peak and those whose fit fails have no outline and are left out of the comparison.
    The distance from the receptive field of the data is the cosine distance of the two Gaussians,

        1 - ⟨G1, G2⟩ / (|G1| |G2|),

    (Zheng et al. 2021, Fig 4C), 0 for equal and 1 for separate fields.

    The result has `spatial (cell, y, x)`, `temporal (cell, lag)`, `peak_z`, `threshold`, `found`,
    the variables of `retinakit.spikes.fit_ellipse` and `reason (cell)`, why there is no outline;
    the indices `morans_i`, `temporal_regularity` and `temporal_autocorrelation (cell)`, NaN for
    cells that were not found; and, with a comparison, `distance (cell)` and the outlines of the
    data `data_centre_y`, `data_centre_x`, `data_sd_major`, `data_sd_minor` and `data_angle (cell)`.

    Raises:
        UserError: if the stimulus has channels, the truth has no receptive fields and `compare` is
            'truth', or the field of the data is another than that of the model.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = WhiteNoiseReceptiveField.with_options(clips=2000).run(model, recording)
        >>> bool((result["distance"] < 0.3).all())
        True
    """

    Config = WhiteNoiseReceptiveFieldConfig
    quick: ClassVar[dict[str, Any]] = {"clips": 500}

    def run(self, model: Model, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        c = self.config
        fields = white_noise_field(
            model,
            c.clips,
            contrast=c.contrast,
            false_positive=c.false_positive,
            seed=self.seed,
            progress=progress,
        )
        result = fields[list(KEPT)]
        result["spatial"] = result["spatial"].astype(np.float32)
        index = shape_indices(result["spatial"], result["temporal"])
        result = result.merge(index.where(result["found"]))
        known = self._of_data(model, data)
        if known is not None:
            known = known.reindex(cell=result["cell"])
            result["distance"] = field_distance(result, known)
            result = result.assign({f"data_{name}": known[name] for name in OUTLINE})
        return result

    def _of_data(self, model: Model, data: xr.DataTree) -> xr.Dataset | None:
        """The outlines (cell) of the data's receptive fields."""
        c = self.config
        if c.compare == "none":
            return None
        train = data["train"].to_dataset()
        for dim in ("y", "x"):
            if not np.array_equal(_place(train, dim), _place(model.field, dim)):
                raise UserError(
                    f"the field of the data differs from that of the model along '{dim}'; give the "
                    "recording to which the model was fitted or one with the same pixels"
                )
        if c.compare != "sta":
            truth = data["truth"].to_dataset() if "truth" in data.children else xr.Dataset()
            if (known := _of_truth(truth, train)) is not None:
                return known
            if c.compare == "truth":
                raise UserError(
                    "the recording has no true receptive fields (there are no centre_y and "
                    "sd_major and no subunit_weight in its group truth); use compare: sta"
                )
        found = []
        for first in range(0, train.sizes["cell"], CELLS_AT_ONCE):
            some = train.isel(cell=slice(first, first + CELLS_AT_ONCE))
            average, noise = sta(some, model.lags)["sta"], analytic_noise([some], model.lags)
            found.append(receptive_field(average, noise, c.false_positive)[list(OUTLINE)])
        return xr.concat(found, "cell")

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(islice(cases(result), CASES))
        compared = any("distance" in case for _, case in shown)
        figure = Figure(figsize=(11, 2.6 * len(shown) + 2.4 * compared), layout="constrained")
        heights = [2.6] * len(shown) + [2.4] * compared
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        parts = parts[:, 0]
        for index, (label, case) in enumerate(shown):
            case = case.expand_dims("cell") if "cell" not in case.dims else case
            grid = parts[index].add_gridspec(2, 2 + EXAMPLES, height_ratios=[2, 1])
            outlines = parts[index].add_subplot(grid[:, 0])
            indices = parts[index].add_subplot(grid[:, 1])
            _draw_outlines(outlines, case, f"C{index}")
            outlines.set_ylabel(label)
            _draw_indices(indices, case, f"C{index}")
            best = np.argsort(-case["peak_z"].where(case["found"] == 1).fillna(-1).values)
            for column, cell in enumerate(best[:EXAMPLES]):
                image, course = (parts[index].add_subplot(grid[i, 2 + column]) for i in (0, 1))
                _draw_example(image, course, case.isel(cell=cell), f"C{index}")
        if compared:
            _draw_distances(parts[-1], shown)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        compared = any("distance" in group for group in groups(result).values())
        return (
            f"Receptive fields of the models' cells, from {self.config.clips:,} frames of white "
            "noise weighted by the predicted rate. Left: outlines at 2 standard deviations of the "
            "fitted Gaussians"
            + (", of the models (colours) and of the data (grey)" * compared)
            + ". Second: the spatial index of the fields against the temporal one; the cross is "
            "their mean ± sd. Right: the fields with the highest peaks and their time courses, "
            "which end at the response."
            + (
                " Bottom: the cosine distance of the Gaussians of model and data; dashed lines are "
                "means." * compared
            )
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            found, fitted = group["found"] == 1, group["sd_major"].notnull()
            columns = {
                "cells": group["peak_z"].notnull().sum("cell"),
                "with a receptive field": found.sum("cell"),
                "with an outline": fitted.sum("cell"),
            }
            if "distance" in group:
                columns["compared"] = group["distance"].count("cell")
                columns["mean distance"] = group["distance"].mean("cell")
                columns["sd of distance"] = group["distance"].std("cell")
            for index, label in SHAPE_INDICES.items():
                if index in group:
                    columns[f"mean {label}"] = group[index].mean("cell")
                    columns[f"sd of {label}"] = group[index].std("cell")
            frame = xr.Dataset(columns).expand_dims("line").to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame.drop(columns="line"))
        table = pd.concat(frames, ignore_index=True)
        first = [column for column in points(result) if column in table]
        return table[[*first, *[column for column in table if column not in first]]]


def _of_truth(truth: xr.Dataset, train: xr.Dataset) -> xr.Dataset | None:
    """The outlines of the true receptive fields, or None if the truth has none."""
    if set(OUTLINE) <= set(truth.data_vars):
        outlines = truth[list(OUTLINE)]
    elif {"subunit_weight", "output_weight"} <= set(truth.data_vars):
        field = (truth["subunit_weight"] * truth["output_weight"]).sum("subunit")
        largest, smallest = field.max(("y", "x")), field.min(("y", "x"))
        outlines = fit_ellipse(field * xr.where(-smallest > largest, -1, 1))[list(OUTLINE)]
    else:
        return None
    if "cell" not in outlines.coords and outlines.sizes["cell"] == train.sizes["cell"]:
        outlines = outlines.assign_coords(cell=train["cell"].values)
    return outlines


def _place(dataset: xr.Dataset, dim: str) -> Any:
    return dataset[dim].values if dim in dataset.coords else np.arange(dataset.sizes[dim])


def _draw_outlines(axis: Any, case: xr.Dataset, color: str) -> None:
    """The outlines of all cells over the field."""
    from matplotlib.collections import EllipseCollection

    for prefix, edge, width in (("data_", "0.6", 1.2), ("", color, 0.8)):
        if f"{prefix}sd_minor" not in case:
            continue
        there = case[f"{prefix}sd_minor"].notnull().values
        one = case.isel(cell=there)
        values = {name: one[f"{prefix}{name}"].values.astype(float) for name in OUTLINE}
        axis.add_collection(
            EllipseCollection(
                4 * values["sd_major"],
                4 * values["sd_minor"],
                np.degrees(values["angle"]),
                units="xy",
                offsets=np.stack([values["centre_x"], values["centre_y"]], 1),
                offset_transform=axis.transData,
                facecolors="none",
                edgecolors=edge,
                linewidths=width,
            )
        )
    y, x = pixel_edges(_place(case, "y"), _place(case, "x"))
    axis.set(xlim=(x[0], x[-1]), ylim=(y[-1], y[0]), xticks=[], yticks=[])
    if len(extended(case["spatial"])) == 2:
        axis.set_aspect("equal")


def _draw_indices(axis: Any, case: xr.Dataset, color: str) -> None:
    if "temporal_regularity" not in case:
        axis.set_axis_off()
        return
    x, y = case["morans_i"].values, case["temporal_regularity"].values
    if not np.isfinite(x * y).any():
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no receptive field", ha="center", transform=axis.transAxes, fontsize=8)
        return
    axis.plot(x, y, ".", ms=3, color=color, alpha=0.5)
    spread = {"xerr": np.nanstd(x), "yerr": np.nanstd(y)}
    axis.errorbar(np.nanmean(x), np.nanmean(y), **spread, color="k", lw=1, zorder=3)
    axis.set_xlabel(SHAPE_INDICES["morans_i"], fontsize=8)
    axis.set_ylabel(SHAPE_INDICES["temporal_regularity"], fontsize=8)
    axis.tick_params(labelsize=7)


def _draw_example(image: Any, course: Any, one: xr.Dataset, color: str) -> None:
    """One cell's field with its outlines, and its time course."""
    from matplotlib.patches import Ellipse

    for axis in (image, course):
        axis.set(xticks=[], yticks=[])
    if float(one["found"]) != 1:
        image.set_axis_off()
        course.set_axis_off()
        return
    temporal = one["temporal"] if one.sizes["lag"] > 1 else None
    draw_field(image, in_time(one["spatial"], temporal))
    image.set(xticks=[], yticks=[])
    number = f" ({float(one['distance']):.2f})" if np.isfinite(one.get("distance", np.nan)) else ""
    image.set_title(f"cell {one['cell'].item()}{number}", fontsize=8, pad=2)
    for prefix, edge in (("data_", "0.4"), ("", color)):
        if len(extended(one["spatial"])) == 2 and np.isfinite(one.get(f"{prefix}sd_minor", np.nan)):
            values = {name: float(one[f"{prefix}{name}"]) for name in OUTLINE}
            image.add_patch(
                Ellipse(
                    (values["centre_x"], values["centre_y"]),
                    4 * values["sd_major"],
                    4 * values["sd_minor"],
                    angle=np.degrees(values["angle"]),
                    fill=False,
                    lw=1.2,
                    color=edge,
                )
            )
    if temporal is None:
        course.set_axis_off()
        return
    course.plot(-_place(one, "lag"), temporal, color=color, lw=1)
    course.axhline(0, color="0.8", lw=0.6, zorder=0)


def _draw_distances(figure: Any, shown: list[tuple[str, xr.Dataset]]) -> None:
    axis = figure.subplots()
    edges = np.linspace(0, 1, 21)
    for index, (label, case) in enumerate(shown):
        distance = case["distance"].values.ravel() if "distance" in case else np.array([])
        distance = distance[np.isfinite(distance)]
        if len(distance) == 0:
            continue
        name = label.replace("\n", ", ")
        text = f"{name}: {distance.mean():.2f} ± {distance.std():.2f}, {len(distance)} cells"
        axis.hist(distance, edges, histtype="step", color=f"C{index}", lw=1.5, label=text)
        axis.axvline(distance.mean(), color=f"C{index}", lw=1, ls="--")
    axis.set(xlabel="distance of the receptive fields of model and data", ylabel="cells")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    else:
        axis.set_title("no cell has an outline of both", fontsize=8)
