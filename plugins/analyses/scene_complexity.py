"""Complexity of a stimulus in space and time (Zheng et al. 2021, Figs 3D, 3E and S4)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
    blocks,
    cases,
    groups,
    mean_over_repeats,
    mean_response,
    points,
)
from retinakit.scores import checked, correlation
from retinakit.spikes import locations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K1, K2 = 0.01, 0.03
"""The constants of SSIM (Wang et al. 2004)."""

FRAMES = 32
"""Frames that are compared together; their patches fit into the processor's cache."""

WINDOW = 7
"""Side of the windows of SSIM in pixels, in patches that are large enough."""

AXES = {
    "spatial_complexity": "spatial complexity",
    "temporal_complexity": "temporal complexity",
}


class SceneComplexityConfig(Config):
    """Options of the patches and of their similarity."""

    patch: int | None = Field(
        None,
        ge=1,
        description="Side of a patch in pixels, 18 in Zheng et al. (2021); by default a fifth of "
        "the shorter side of the field. Rows and columns that do not fill a patch are left out.",
    )
    window: int | None = Field(
        None,
        ge=2,
        description="Side of the windows of SSIM in pixels, at most that of a patch; by default 7, "
        "as in scikit-image, or that of the patches if they are smaller.",
    )
    data_range: float | None = Field(
        None,
        gt=0,
        description="Range of the pixels for the constants of SSIM; by default the difference of "
        "the largest and the smallest pixel of the stimulus.",
    )
    split: Literal["train", "validation", "test"] = Field(
        "test", description="The split whose stimulus is analysed."
    )


class SceneComplexity(Analysis):
    """Complexity of the patches of a movie in space and time.

    Each frame is divided into square patches. The spatial complexity of patch i is

        SC_i = 1 - (1/T) Σ_t (1/n) Σ_j SSIM(p_i(t), p_j(t))

    over the frames t and the n existing neighbours j, 8 inside and 5 or 3 at the borders, and the
    temporal complexity is

        TC_i = 1 - 1/(T-1) Σ_t 1/(n+1) (Σ_j SSIM(p_i(t), p_j(t+1)) + SSIM(p_i(t), p_i(t+1)))

    (Zheng et al. 2021, Eqs 9 and 10) over the pairs of frames in a segment. SSIM is the structural
    similarity of Wang et al. (2004) with uniform windows of 7 x 7 pixels, as in scikit-image. Both
    are 0 for a uniform movie that does not change, and near 1 for white noise.

    The result has `spatial_complexity` and `temporal_complexity (row, column)` of the patches, and
    `centre_y (row)` and `centre_x (column)`, the middle of the patches in pixels.

    Raises:
        UserError: if the stimulus has channels or is constant, a patch is smaller than the window,
            or there is one patch only.

    Example:
        >>> from retinakit.testing import small_recording
        >>> analysis = SceneComplexity.with_options(patch=4, window=3)
        >>> result = analysis.run(small_recording(frames=100))
        >>> dict(result["spatial_complexity"].sizes)
        {'row': 2, 'column': 2}
    """

    Config = SceneComplexityConfig
    quick: ClassVar[dict[str, Any]] = {"patch": 4, "window": 3}

    def run(self, data: xr.DataTree) -> xr.Dataset:
        c = self.config
        split = data[c.split].to_dataset()
        return complexity(split["stimulus"], c.patch, c.window, c.data_range)

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(cases(result))
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        scatter, *maps = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
        for index, (label, case) in enumerate(shown):
            values = [case[name].values.ravel() for name in AXES]
            scatter.plot(*values, ".", color=f"C{index}", label=label.replace("\n", ", "))
            middle = [np.nanmean(one) for one in values]
            scatter.plot(*middle, "+", ms=12, mew=2, color=f"C{index}")
        scatter.set(xlabel=AXES["spatial_complexity"], ylabel=AXES["temporal_complexity"])
        if len(shown) > 1:
            scatter.legend(frameon=False, fontsize=8)
        label, case = shown[0]
        for axis, (name, title) in zip(maps, AXES.items(), strict=True):
            image = axis.imshow(case[name].transpose("row", "column"), cmap="viridis")
            figure.colorbar(image, ax=axis, shrink=0.7)
            axis.set(title=title, xticks=[], yticks=[])
        if len(shown) > 1:
            maps[0].set_ylabel(label, fontsize=8)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        size = next(iter(groups(result).values())).attrs.get("patch")
        of = f" of {size} x {size} pixels" if size else ""
        first = " of the first movie" if len(list(cases(result))) > 1 else ""
        return (
            f"Complexity of the stimulus. Left: each dot is a patch{of}, and crosses are means. "
            f"Right: the patches{first} at their places."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        lines = []
        for name, group in groups(result).items():
            numbers = xr.Dataset(
                {
                    f"{AXES[variable]}, {what}": getattr(group[variable], what)(("row", "column"))
                    for variable in AXES
                    for what in ("mean", "std")
                }
            )
            frame = numbers.expand_dims("line").to_dataframe().reset_index(drop=False)
            frame.insert(0, "data", name)
            lines.append(frame.drop(columns="line"))
        return pd.concat(lines, ignore_index=True)


class ScenePerformance(SceneComplexity):
    """Prediction of the cells in each patch of a movie, against the complexity of the patch.

    The performance of a patch is the mean correlation, over the frames of the split, of the cells
    whose receptive field has its centre in the patch (Zheng et al. 2021, Figs 3E and S4). The
    centres are those of the group `truth`, where it has them (`location_y` and `location_x`, or
    `subunit_weight`); otherwise they are the peaks of the smoothed receptive fields by
    `retinakit.spikes.locations` from the training frames. For a movie, whose pixels are correlated,
    these are less precise.

    In addition to the result of `scene_complexity`, there are `correlation (row, column)`, the mean
    over cells, NaN for a patch without cells, and their number `cells (row, column)`; the
    `correlation_of_cell`, `row_of_cell` and `column_of_cell (cell)`, -1 for a cell in no patch; and
    `with_spatial_complexity` and `with_temporal_complexity`, the correlation over patches between
    performance and complexity.

    Raises:
        UserError: as by `scene_complexity`.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> analysis = ScenePerformance.with_options(patch=4, window=3)
        >>> int(analysis.run(model, recording)["cells"].sum())
        2
    """

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:  # type: ignore[override]
        result = super().run(data)
        split = data[self.config.split].to_dataset()
        predicted = mean_over_repeats(checked(model.predict(split), model.lags))
        score = correlation(predicted, mean_response(split).astype(float))
        size, shape = result.attrs["patch"], (result.sizes["row"], result.sizes["column"])
        place = np.floor((_centres(data, split, model.lags) + 0.5) / size).astype(int)
        inside = ((place >= 0) & (place < shape)).all(1)
        place[~inside] = -1
        total, number, cells = np.zeros(shape), np.zeros(shape), np.zeros(shape, int)
        known = inside & np.isfinite(score.values)
        np.add.at(total, tuple(place[known].T), score.values[known])
        np.add.at(number, tuple(place[known].T), 1)
        np.add.at(cells, tuple(place[inside].T), 1)
        dims = ("row", "column")
        performance = np.divide(total, number, out=np.full(shape, np.nan), where=number > 0)
        result = result.assign(
            correlation=(dims, performance),
            cells=(dims, cells),
            correlation_of_cell=score.drop_vars(["time", "segment"], errors="ignore"),
            row_of_cell=("cell", place[:, 0]),
            column_of_cell=("cell", place[:, 1]),
        )
        for name in AXES:
            result[f"with_{name}"] = xr.corr(result[name], result["correlation"])
        return result

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(cases(result))
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (name, title) in zip(axes, AXES.items(), strict=True):
            for index, (label, case) in enumerate(shown):
                x, y = case[name].values.ravel(), case["correlation"].values.ravel()
                there, r = np.isfinite(x) & np.isfinite(y), float(case[f"with_{name}"])
                number = f" (r = {r:.2f})" if np.isfinite(r) else ""
                text = label.replace("\n", ", ") + number
                axis.plot(x[there], y[there], "o", ms=4, color=f"C{index}", label=text)
                if np.isfinite(r):
                    line = np.poly1d(np.polyfit(x[there], y[there], 1))
                    ends = np.array([x[there].min(), x[there].max()])
                    axis.plot(ends, line(ends), "-", lw=1, color=f"C{index}")
            axis.set_xlabel(title)
            axis.legend(frameon=False, fontsize=8)
        axes[0].set_ylabel("mean correlation of the cells in a patch")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        first = next(iter(groups(result).values()))
        size, without = first.attrs.get("patch"), float((first["cells"] == 0).mean())
        of = f" of {size} x {size} pixels" if size else ""
        return (
            f"Performance against the complexity of the stimulus. Each dot is a patch{of}: the "
            "mean correlation of the cells with the centre of their receptive field in the patch. "
            f"Lines are least-squares fits. {100 * without:.0f} % of the patches have no cells."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        lines = []
        for name, group in groups(result).items():
            patches = ("row", "column")
            numbers = xr.Dataset(
                {
                    "patches with cells": group["correlation"].count(patches),
                    "mean correlation of patches": group["correlation"].mean(patches),
                    **{f"r with {AXES[one]}": group[f"with_{one}"] for one in AXES},
                }
            )
            frame = numbers.expand_dims("line").to_dataframe().reset_index(drop=False)
            frame.insert(0, "model", name)
            lines.append(frame.drop(columns="line"))
        table = pd.concat(lines, ignore_index=True)
        first = [column for column in points(result) if column in table]
        return table[[*first, *[column for column in table if column not in first]]]


def complexity(
    movie: xr.DataArray,
    patch: int | None = None,
    window: int | None = None,
    data_range: float | None = None,
) -> xr.Dataset:
    """The spatial and temporal complexity of the patches of a movie (see `SceneComplexity`).

    The movie is read in blocks.

    Args:
        movie: (frame, y, x), with the coordinate `segment` if there are several.
        patch: side of a patch in pixels; by default a fifth of the shorter side.
        window: side of the windows of SSIM in pixels; by default 7, or that of smaller patches.
        data_range: of the pixels; by default that of the movie.

    Returns:
        `spatial_complexity` and `temporal_complexity (row, column)`, the latter NaN for single
        frames; `centre_y (row)` and `centre_x (column)` in pixels; and the attributes `patch` and
        `data_range`.

    Raises:
        UserError: as `SceneComplexity`.

    Example:
        >>> checks = np.kron([[0.2, 0.8], [0.8, 0.2]], np.ones((18, 18)))
        >>> movie = xr.DataArray(np.stack([checks, checks]), dims=("frame", "y", "x"))
        >>> found = complexity(movie, patch=18, data_range=1)
        >>> found["spatial_complexity"].values.round(6).tolist()
        [[0.352889, 0.352889], [0.352889, 0.352889]]
    """
    if "channel" in movie.dims:
        raise UserError("the stimulus has channels; the complexity is that of one without")
    movie = movie.transpose("frame", "y", "x")
    frames, height, width = movie.shape
    size = patch or max(1, min(height, width) // 5)
    rows, columns = height // size, width // size
    window = window or max(2, min(WINDOW, size))
    if size < window:
        raise UserError(
            f"patches of {size} x {size} pixels are smaller than the windows of SSIM, {window} x "
            f"{window}; set a larger patch or a smaller window"
        )
    if rows * columns < 2:
        raise UserError(
            f"a field of {height} x {width} pixels has no two patches of {size} x {size}; set a "
            "smaller patch"
        )
    span = _range(movie) if data_range is None else data_range
    if not span > 0:
        raise UserError("the stimulus is constant, so it has no complexity")
    segment = movie["segment"].values if "segment" in movie.coords else np.zeros(frames, int)
    spatial, temporal = np.zeros((rows, columns)), np.zeros((rows, columns))
    pairs = 0
    for block in blocks(movie, history=1, itemsize=8):
        values = np.asarray(movie[block], float)
        new = block.start if block.start == 0 else block.start + 1
        for start in range(block.start, block.stop, FRAMES):
            stop = min(start + FRAMES + 1, block.stop)
            part = values[start - block.start : stop - block.start]
            # (pixel_y, pixel_x, row, column, frame): frames last, for long inner loops
            part = part[:, : rows * size, : columns * size]
            part = part.reshape(-1, rows, size, columns, size).transpose(2, 4, 1, 3, 0)
            similar = _Similarity(np.ascontiguousarray(part), window, span)
            once = np.arange(start, stop) >= max(start, new)
            # The last frame is the first one of the next part, or of the next block.
            once[-1] &= stop == block.stop
            spatial += similar.to_neighbours(once)
            together = segment[start : stop - 1] == segment[start + 1 : stop]
            temporal += similar.to_next_frames(together)
            pairs += int(together.sum())
            if stop == block.stop:
                break
    neighbours = _neighbours(rows, columns)
    result = {
        "spatial_complexity": 1 - spatial / neighbours / frames,
        "temporal_complexity": 1 - temporal / (neighbours + 1) / (pairs or np.nan),
    }
    return xr.Dataset(
        {name: (("row", "column"), values) for name, values in result.items()},
        coords={
            "row": np.arange(rows),
            "column": np.arange(columns),
            "centre_y": ("row", (np.arange(rows) + 0.5) * size - 0.5),
            "centre_x": ("column", (np.arange(columns) + 0.5) * size - 0.5),
        },
        attrs={"patch": size, "data_range": span},
    )


SPATIAL = ((0, 1), (1, 0), (1, 1), (1, -1))
"""The offsets of four of the eight neighbours; those of the others are their negatives."""


class _Similarity:
    """SSIM of all pairs of neighbouring patches in some consecutive frames.

    Args:
        patches: (pixel_y, pixel_x, row, column, frame).
        window: side of the windows.
        data_range: of the pixels.
    """

    def __init__(self, patches: NDArray[np.float64], window: int, data_range: float):
        self.patches, self.window = patches, window
        self.c1, self.c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
        self.unbiased = window**2 / (window**2 - 1)  # sample covariances, as in scikit-image
        self.mean = _window_means(patches, window)
        self.square = self.mean**2
        self.variance = self.unbiased * (_window_means(patches**2, window) - self.square)

    def to_neighbours(self, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The sum (row, column) over the counted frames and over the existing neighbours."""
        total = np.zeros(self.patches.shape[2:4])
        for offset in SPATIAL:
            here, there = _overlap(offset)
            one = self._ssim(here, there, slice(None), slice(None))[..., counted].sum(-1)
            total[here] += one
            total[there] += one
        return total

    def to_next_frames(self, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The sum (row, column) over the counted pairs of frames, patches and their neighbours."""
        total = np.zeros(self.patches.shape[2:4])
        if not counted.any():
            return total
        for offset in ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
            here, there = _overlap(offset)
            one = self._ssim(here, there, slice(None, -1), slice(1, None))
            total[here] += one[..., counted].sum(-1)
        return total

    def _ssim(
        self, here: tuple[slice, ...], there: tuple[slice, ...], first: slice, second: slice
    ) -> NDArray[np.float64]:
        """SSIM (row, column, frame) between patches at two places and in two runs of frames."""
        a: Any = (..., *here, first)
        b: Any = (..., *there, second)
        product = self.mean[a] * self.mean[b]
        covariance = _window_means(self.patches[a] * self.patches[b], self.window)
        covariance -= product
        covariance *= 2 * self.unbiased
        covariance += self.c2
        product *= 2
        product += self.c1
        product *= covariance
        product /= (self.square[a] + self.square[b] + self.c1) * (
            self.variance[a] + self.variance[b] + self.c2
        )
        similarity: NDArray[np.float64] = product.mean((0, 1))
        return similarity


def _window_means(patches: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The means over all windows that lie in the patches, along the first two dimensions."""
    for _ in range(2):
        sums = np.empty((len(patches) - window + 1, *patches.shape[1:]))
        patches[:window].sum(0, out=sums[0])
        for place in range(1, len(sums)):  # faster than a cumulative sum
            np.add(sums[place - 1], patches[place + window - 1], out=sums[place])
            sums[place] -= patches[place - 1]
        patches = sums.swapaxes(0, 1)
    patches /= window**2
    return patches


def _overlap(offset: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The rows and columns of the patches that have a neighbour at an offset, and of these."""
    here = tuple(slice(max(0, -step), -step if step > 0 else None) for step in offset)
    there = tuple(slice(max(0, step), step if step < 0 else None) for step in offset)
    return here, there


def _neighbours(rows: int, columns: int) -> NDArray[np.float64]:
    """The number (row, column) of existing neighbours: 8 inside, 5 at an edge, 3 in a corner."""
    number = np.zeros((rows, columns))
    for offset in SPATIAL:
        for part in _overlap(offset):
            number[part] += 1
    return number


def _range(movie: xr.DataArray) -> float:
    read = [np.asarray(movie[block]) for block in blocks(movie)] if movie.size else []
    return float(max(part.max() for part in read)) - float(min(part.min() for part in read))


def _centres(data: xr.DataTree, split: xr.Dataset, lags: int) -> NDArray[np.float64]:
    """The centres (cell, 2) of the receptive fields in pixels."""
    truth = data["truth"].to_dataset() if "truth" in data.children else xr.Dataset()
    if "cell" in truth.coords and set(split["cell"].values) <= set(truth["cell"].values):
        truth = truth.sel(cell=split["cell"].values)
    elif truth.sizes.get("cell") != split.sizes["cell"]:
        truth = xr.Dataset()
    if "location_y" in truth and "location_x" in truth:
        return np.stack([truth["location_y"].values, truth["location_x"].values], 1).astype(float)
    if "subunit_weight" in truth and "cell" in truth["subunit_weight"].dims:
        field = abs(truth["subunit_weight"].transpose("cell", "subunit", "y", "x").values).sum(1)
        places = np.indices(field.shape[1:])
        total = field.sum((1, 2))[:, None]
        return np.asarray(np.einsum("cyx,dyx->cd", field, places) / np.where(total > 0, total, 1))
    return locations(data["train"].to_dataset(), lags).astype(float)
