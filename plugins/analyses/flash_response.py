"""Spike counts of cells and models for flashed images (Yan et al. 2020, Fig 10)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
    full_history,
    groups,
    mean_over_repeats,
    points,
    segments,
    sweep_dims,
)
from retinakit.report import pixel_edges
from retinakit.scores import (
    NOT_PREDICTED,
    NOT_RECORDED,
    checked,
    correlation,
    correlation_ceiling,
)
from retinakit.simulation import poisson_spikes
from retinakit.spikes import ELLIPSE, analytic_noise, receptive_field, sta

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FlashResponseConfig(Config):
    """Options of the counting window and of the figure."""

    start: float = Field(
        0.0, description="Start of the counting window, in seconds from an image's onset."
    )
    end: float = Field(
        1.0, description="End of the counting window, in seconds from an image's onset."
    )
    flash: float = Field(
        0.2, gt=0, description="Duration of an image in seconds, which is shaded in the figure."
    )
    silent: float = Field(
        0.25,
        ge=0,
        description="An image with fewer spikes per trial than this counts as silent.",
    )
    trials: int = Field(
        20, ge=1, description="Largest number of trials kept of the data and of the model."
    )
    shown: int = Field(50, ge=1, description="Number of images in the sequence that is drawn.")


class FlashResponse(Analysis):
    """Spike counts of each cell and of its model for each flashed image.

    The test must have one segment per image, as that of `natural_images` or of `hdf5` with
    `test_segment_frames`. Its coordinate `from_onset` is the time from the image's onset; without
    it, the onset is the start of the segment. To test a model that was fitted to another stimulus,
    name the model in `models:` and the recording of the flashes in `data:`. Both must have the same
    stimulus size and cells.

    The result has `count_data (image, cell)`, spikes per trial in the counting window, averaged
    over repeats; `count_model (image, cell)`, the expected count of the model; `count_true (image,
    cell)` where the true rate is known; `data (trial, image, bin, cell)`, the recorded spikes, and
    `model (trial, image, bin, cell)`, Poisson spikes drawn from the prediction. Over images it has
    the `correlation` of the counts, its noise `ceiling`, and the numbers of silent images
    `silent_data`, `silent_model` and `silent_both (cell)`. It also has the Gaussian fit to the
    spike-triggered average of the training frames, in the units of y and x.

    Raises:
        UserError: if the segments of the test differ in their number of frames in the window, or
            no frame of the window has a full history.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> test = recording["test"].to_dataset()
        >>> image = ("frame", np.arange(500) // 50)  # ten images of 50 frames
        >>> recording["test"] = xr.DataTree(test.assign_coords(segment=image))
        >>> result = FlashResponse.with_options(end=1.5).run(model, recording)
        >>> dict(result["count_model"].sizes)
        {'image': 10, 'cell': 2}
    """

    Config = FlashResponseConfig
    quick: ClassVar[dict[str, Any]] = {"trials": 3}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        c, test = self.config, data["test"].to_dataset()
        frames, after = self._frames(test)
        predicted = mean_over_repeats(model.predict(test)).values[frames]
        known = full_history(test["segment"], model.lags)[frames].all(0)
        if not known.any():
            raise UserError(
                f"the model needs {model.lags} frames of history, and no segment of the test has "
                f"as many before {c.end:g} s after the onset; begin each segment with a blank"
            )
        frames, after, predicted = frames[:, known], after[known], predicted[:, known]
        response = test["response"]
        if "repeat" not in response.dims:
            response = response.expand_dims("repeat")
        spikes = response.transpose("repeat", "frame", "cell").values[:, frames]
        counts = spikes.sum(2, dtype=float)
        shown = spikes[: c.trials]
        drawn = poisson_spikes(predicted, len(shown), self.seed)
        expected = predicted.sum(1, dtype=float)
        silent_data, silent_model = counts.mean(0) < c.silent, expected < c.silent
        result = xr.Dataset(
            {
                "count_data": (("image", "cell"), counts.mean(0)),
                "count_model": (("image", "cell"), expected),
                "data": (("trial", "image", "bin", "cell"), shown),
                "model": (("trial", "image", "bin", "cell"), drawn),
                "silent_data": ("cell", silent_data.sum(0)),
                "silent_model": ("cell", silent_model.sum(0)),
                "silent_both": ("cell", (silent_data & silent_model).sum(0)),
            },
            coords={
                "cell": test["cell"].variable,
                "image": np.arange(len(frames)),
                "bin": np.arange(len(after)),
                "from_onset": ("bin", after, {"units": "s"}),
                "trial": np.arange(len(shown)),
            },
        )
        if "rate" in test:
            true = test["rate"].transpose("frame", "cell").values[frames]
            result["count_true"] = (("image", "cell"), true.sum(1, dtype=float))
        lost = xr.DataArray(np.isnan(counts).all((0, 1)), {"cell": test["cell"]}, ("cell",))
        if lost.any():
            for name in ("silent_data", "silent_both"):
                result[name] = result[name].where(~lost)
            result["reason"] = xr.where(lost, NOT_RECORDED, "")
        # The scores compare along `frame`, and here along images. No prediction may be missing.
        over_images = {"image": "frame"}
        result["correlation"] = correlation(
            checked(result["count_model"].rename(over_images), lags=1),
            result["count_data"].rename(over_images),
        )
        if (lacking := result["count_model"].isnull().any("image") & ~lost).any():
            result["reason"] = xr.where(lacking, NOT_PREDICTED, xr.where(lost, NOT_RECORDED, ""))
        result["ceiling"] = correlation_ceiling(
            xr.DataArray(counts, {"cell": test["cell"]}, ("repeat", "frame", "cell"))
        )
        result = result.merge(self._field(data["train"].to_dataset(), model.lags))
        if "images" in data.children and data["images"].sizes["image"] == len(frames):
            result["picture"] = data["images"]["picture"].drop_vars("image")
        result.attrs["frame_interval"] = test.attrs["frame_interval"]
        return result

    def _frames(self, test: xr.Dataset) -> tuple[NDArray[Any], NDArray[Any]]:
        """The frames of each image's window (image, bin), and their times from the onset in s."""
        c, chosen, times = self.config, [], []
        for part in segments(test):
            if "from_onset" in test.coords:
                after = test["from_onset"].values[part]
            else:  # an image is shown from the start
                after = test["time"].values[part] - test["time"].values[part.start]
            # Times are multiples of the frame interval up to rounding errors.
            rounding = 1e-3 * test.attrs["frame_interval"]
            inside = (after >= c.start - rounding) & (after < c.end - rounding)
            chosen.append(np.flatnonzero(inside) + part.start)
            times.append(after[inside])
        lengths = sorted({len(frames) for frames in chosen})
        if len(lengths) > 1 or not lengths[0]:
            raise UserError(
                f"from {c.start:g} to {c.end:g} s after the onset, segments of the test have "
                f"{' or '.join(map(str, lengths))} frames, and each needs the same number, at "
                "least 1; change start or end"
            )
        return np.array(chosen), times[0]

    def _field(self, train: xr.Dataset, lags: int) -> xr.Dataset:
        average, noise = sta(train, lags)["sta"], analytic_noise([train], lags)
        if "channel" in average.dims:
            # The channels are independent in white noise.
            channels = average.sizes["channel"]
            average = average.sum("channel")
            mean = noise["mean"]
            noise["mean"] = mean.sum("channel") if "channel" in mean.dims else mean * channels
            noise["deviation"] = noise["deviation"] * channels**0.5
        return receptive_field(average, noise)[list(ELLIPSE)]

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        c, cells = self.config, _cells(result)
        drawn = dict(list(cells.items())[:CELLS_SHOWN])
        models = next(iter(drawn.values()))
        rows = 1 + len(models)
        below = 1.5 + 0.55 * rows * len(drawn)
        figure = Figure(figsize=(10.5, 2.4 + below), layout="constrained")
        above, bottom = figure.subfigures(2, 1, height_ratios=[2.4, below], squeeze=False)[:, 0]
        sequence, scatter = above.subfigures(1, 2, width_ratios=[3, 1], squeeze=False)[0]
        self._draw_sequence(sequence, *next(iter(drawn.items())))
        _draw_counts(scatter.subplots(), cells)
        images = _examples(np.array([next(iter(m.values()))["count_data"] for m in drawn.values()]))
        grid = bottom.subplots(
            1 + rows * len(drawn),
            len(images),
            squeeze=False,
            height_ratios=[1.5] + [0.55] * rows * len(drawn),
        )
        for axis, image in zip(grid[0], images, strict=True):
            _draw_picture(axis, drawn, image)
        for index, (label, models) in enumerate(drawn.items()):
            for column, image in enumerate(images):
                axes = grid[1 + rows * index : 1 + rows * (index + 1), column]
                trials = {"cell": ("0.15", next(iter(models.values()))["data"])}
                trials |= {m: (f"C{i}", one["model"]) for i, (m, one) in enumerate(models.items())}
                for axis, (name, (color, spikes)) in zip(axes, trials.items(), strict=True):
                    _draw_trials(axis, spikes["from_onset"], spikes.isel(image=image), color)
                    axis.axvspan(0, c.flash, color=CELL_COLOURS[index], alpha=0.25, lw=0)
                    axis.set_xlim(c.start, c.end)
                    axis.tick_params(labelbottom=False)
                    if not column:
                        what = f"cell {label}" if name == "cell" else name
                        axis.set_ylabel(what, rotation=0, ha="right", va="center", fontsize=9)
        for axis in grid[-1]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("time from onset (s)", fontsize=9)
        return figure

    def _draw_sequence(self, figure: Any, label: str, models: dict[str, xr.Dataset]) -> None:
        """Draws trials of one cell and of its models, image after image."""
        c, first = self.config, next(iter(models.values()))
        trials = {f"cell {label}": ("0.15", first["data"])}
        trials |= {m: (f"C{i}", one["model"]) for i, (m, one) in enumerate(models.items())}
        axes = figure.subplots(len(trials), 1, sharex=True, squeeze=False)[:, 0]
        shown = range(min(c.shown, first.sizes["image"]))
        for axis, (name, (color, spikes)) in zip(axes, trials.items(), strict=True):
            for image in shown:
                after = (spikes["from_onset"] - c.start) / (c.end - c.start)
                _draw_trials(axis, image + after, spikes.isel(image=image), color)
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axes[-1].set(xlabel="image", xlim=(0, len(shown)))

    def caption(self, result: xr.DataTree) -> str:
        cells = _cells(result)
        parts = []
        for label, models in cells.items():
            for name, one in models.items():
                silent = (int(one[f"silent_{part}"]) for part in ("data", "model", "both"))
                parts.append(
                    "cell {}, {}: r = {:.2f}, silent {}, {}, {}".format(
                        label, name, float(one["correlation"]), *silent
                    )
                )
        return (
            "Top left: trials of one cell and trials drawn from its models, image after image. Top "
            "right: mean spikes per trial of models against cells, one dot per image. Bottom: "
            "images for which the cells fire many, few or no spikes, with the 2-sd outlines of the "
            "cells' receptive fields, and the spikes of cells and models; the flash is shaded. "
            "Correlation over images, and number of silent images in the data, in the model and in "
            f"both: {'; '.join(parts)}."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        columns = ["correlation", "ceiling", "silent_data", "silent_model", "silent_both"]
        frames = []
        for name, group in groups(result).items():
            frame = group[columns].to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frame.insert(len(frame.columns), "images", group.sizes["image"])
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)[[*points(result), "images", *columns]]


CELLS_SHOWN = 3
CELL_COLOURS = ("C2", "C5", "C4")


def _cells(result: xr.DataTree) -> dict[str, dict[str, xr.Dataset]]:
    """The data to draw by cell, then by model, at the last point of all other sweeps."""
    found: dict[str, dict[str, xr.Dataset]] = {}
    for name, group in groups(result).items():
        swept = [dim for dim in sweep_dims(group) if dim != "cell"]
        point = group.isel(dict.fromkeys(swept, -1))
        for index, cell in enumerate(point["cell"].values):
            found.setdefault(str(cell), {})[name] = point.isel(cell=index)
    return found


def _examples(counts: NDArray[Any]) -> list[int]:
    """The images to show, as indices.

    For one cell, those of the largest count and of the 90th, 75th, 50th and 0th percentile. For
    several, one for which all cells fire, one for which each cell alone is silent and one for which
    all are silent, where there are such images.

    Args:
        counts: (cell, image).
    """
    if len(counts) == 1:
        order = counts[0].argsort(kind="stable")
        ranks = [len(order) * part // 100 for part in (0, 50, 75, 90)]
        return [int(i) for i in dict.fromkeys([order[-1], *order[ranks][::-1]])]
    chosen = [counts.min(0).argmax()]
    for cell, count in enumerate(counts):
        others = np.where(count == 0, np.delete(counts, cell, 0).min(0), 0)
        if others.any():
            chosen.append(others.argmax())
    chosen += list(np.flatnonzero(counts.max(0) == 0)[:1])
    return [int(i) for i in dict.fromkeys(chosen)]


def _draw_counts(axis: Any, cells: dict[str, dict[str, xr.Dataset]]) -> None:
    """Draws the counts of the models against those of the cells."""
    highest = 0.0
    for models in cells.values():
        for index, one in enumerate(models.values()):
            x, y = one["count_data"].values, one["count_model"].values
            axis.plot(x, y, "o", ms=2.5, alpha=0.5, mew=0, color=f"C{index}")
            highest = max(highest, float(np.nanmax([x, y])))
    axis.plot([0, highest], [0, highest], color="0.7", lw=0.8, zorder=0)
    axis.set(xlabel="spikes per image, cells", ylabel="spikes per image, models")


def _draw_picture(axis: Any, cells: dict[str, dict[str, xr.Dataset]], image: int) -> None:
    """Draws an image with the outlines of the cells' receptive fields."""
    from matplotlib.patches import Ellipse

    axis.set(xticks=[], yticks=[], title=f"image {image}", frame_on=False)
    for index, models in enumerate(cells.values()):
        one = next(iter(models.values()))
        if "picture" not in one:
            continue
        if not index:
            y, x = pixel_edges(one["y"].values, one["x"].values)
            axis.pcolormesh(x, y, one["picture"][image], cmap="gray", vmin=-1, vmax=1)
            axis.set_aspect("equal")
            axis.invert_yaxis()
        if np.isfinite(one["sd_major"]):
            axis.add_patch(
                Ellipse(
                    (float(one["centre_x"]), float(one["centre_y"])),
                    4 * float(one["sd_major"]),
                    4 * float(one["sd_minor"]),
                    angle=float(np.degrees(one["angle"])),
                    fill=False,
                    lw=2,
                    color=CELL_COLOURS[index],
                )
            )


def _draw_trials(axis: Any, time: Any, trials: xr.DataArray, color: str) -> None:
    """Draws a stroke for each bin with spikes, with one row per trial."""
    values = np.nan_to_num(trials.transpose("trial", "bin").values)
    row, place = np.nonzero(values > 0)
    axis.plot(np.asarray(time)[place], row, "|", ms=3, mew=0.7, color=color)
    axis.set(yticks=[], ylim=(len(values) - 0.5, -0.5))
