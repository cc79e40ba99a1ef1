"""Spike-triggered covariance (Schwartz et al. 2006): axes whose variance differs before spikes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse.linalg import ArpackError, eigsh
from scipy.stats import t

from retinakit.contracts import (
    Analysis,
    Config,
    Progress,
    UserError,
    full_history,
    groups,
    lag_coordinate,
    mean_response,
    points,
    silent,
    sweep_dims,
)
from retinakit.report import draw_field, extended
from retinakit.spikes import stc, stimulus_covariance, white_shrinkage, whitening_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class STCConfig(Config):
    """Options of the covariance."""

    lags: int = Field(
        10, ge=1, description="Frames of history; 1 for a stimulus of temporal_collapse."
    )
    components: int = Field(
        8, ge=1, description="Number of axes kept, of the largest and of the smallest eigenvalues."
    )
    remove_sta: bool = Field(
        True, description="Project the spike-triggered average out of the covariance."
    )
    shrinkage: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Regularisation of the whitening: the smallest weight of a white covariance "
        "in that of the stimulus. A white stimulus gets the weight 1 in any case.",
    )
    draws: int = Field(
        30, ge=2, description="Number of shifts of the spikes for the band of the null hypothesis."
    )
    level: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Level of the two-sided test: the probability that a cell without such axes "
        "has an eigenvalue beyond the band.",
    )


class STC(Analysis):
    """Axes of the stimulus whose variance differs before spikes, with their significance.

    The matrix is W (C_spike - C) W. C is the covariance of the stimulus histories in all training
    frames with a full history and a response, C_spike is that weighted by the responses, and W
    whitens the stimulus (`retinakit.spikes.whitening_matrix`). An eigenvalue is thus the relative
    change of the variance along an axis before spikes: 0 is no change and -1 is no variance.
    Without the whitening, the eigenvectors for a correlated stimulus are filters that are blurred
    by its covariance. For a white stimulus the whitening has almost no effect. The spike-triggered
    average is projected out. Axes with large eigenvalues excite the cell with either sign, and
    those with small eigenvalues suppress it (Schwartz et al. 2006).

    Significance is a nested test (Schwartz et al. 2006). The spikes are shifted in time against the
    stimulus, which keeps the statistics of both. The largest and the smallest eigenvalue of each
    shift are samples for spikes that do not depend on the stimulus. The band from `null_low` to
    `null_high (cell)` contains both eigenvalues of a further sample with the probability 1 -
    `level`, by Student's t-distribution. The axes beyond the band are then projected out of the
    shifted covariances, which narrows the band, until no further axis is beyond it.

    The method assumes that the stimulus is Gaussian. For binary white noise it is corrected: the
    variance of a check then follows from its mean, so the diagonal of C_spike - C contains no
    information and is computed from the axes, or set to 0 if their contribution is small. For other
    stimuli, such as correlated binary ones or natural images, a cell with a single linear filter
    can have significant axes.

    The result has all eigenvalues, `eigenvalue (cell, rank)`, largest first; the axes
    `component_image (cell, side, component, lag, [channel,] y, x)` of the "largest" and the
    "smallest" `side`, as filters W v of unit norm for the eigenvectors v; and the numbers of
    `excitatory (cell)` eigenvalues above the band and of `suppressive (cell)` ones below it. For a
    cell without a spike with a full history, they are NaN and 0, and `reason (cell)` says so.

    Raises:
        UserError: if no cell has a spike with a full history, a response is negative, the stimulus
            does not vary, or its covariance does not fit into memory.

    Example:
        >>> from retinakit.testing import small_recording
        >>> analysis = STC.with_options(lags=3, components=2, draws=2)
        >>> result = analysis.run(small_recording())
        >>> dict(result["component_image"].sizes)
        {'cell': 2, 'side': 2, 'component': 2, 'lag': 3, 'y': 8, 'x': 8}
    """

    Config = STCConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3, "components": 2, "draws": 2}

    def run(self, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        train = data["train"].to_dataset()
        full = full_history(train["segment"], self.config.lags)
        response = mean_response(train).transpose("frame", "cell").values
        known = full[:, None] & np.isfinite(response)
        alike: dict[bytes, list[int]] = {}  # cells with responses in the same frames
        for cell, frames in enumerate(known.T):
            alike.setdefault(np.packbits(frames).tobytes(), []).append(cell)
        many = train.sizes["cell"]
        spiking = (known & (response != 0)).any(0)
        if not spiking.any():
            raise UserError(
                f"no cell has a spike with {self.config.lags} frames of history; use fewer lags"
            )
        found: dict[int, xr.Dataset] = {}
        for cells in alike.values():
            with_spikes = [cell for cell in cells if spiking[cell]]
            if not with_spikes:
                continue
            prior = self._prior(train, known[:, cells[0]])
            for cell in with_spikes:
                tell = partial(_told, progress, len(found), many)
                found[cell] = self._one_cell(train.isel(cell=[cell]), prior, tell)
        return self._joined(found, train)

    def _joined(self, found: dict[int, xr.Dataset], train: xr.Dataset) -> xr.Dataset:
        """The results of all cells, NaN and with a reason for those without a spike."""
        result: xr.Dataset = xr.concat([found[cell] for cell in sorted(found)], "cell")
        if len(found) == train.sizes["cell"]:
            return result
        result = result.reindex(cell=train["cell"].values)
        lost = ~train["cell"].isin(train["cell"].values[sorted(found)])
        for name in SIDES.values():
            result[name] = result[name].fillna(0).astype(int)
        why = f"the cell has no spike with {self.config.lags} frames of history"
        return result.assign(reason=("cell", np.where(lost, why, "")))

    def _prior(self, split: xr.Dataset, frames: NDArray[np.bool_]) -> "_Prior":
        before = stimulus_covariance(split, self.config.lags, frames=frames)
        covariance = before["covariance"].values
        shrinkage = white_shrinkage(covariance, int(frames.sum()))
        binary = shrinkage > WHITE and bool(before.attrs["two_valued"])
        shrinkage = 1.0 if binary else max(shrinkage, self.config.shrinkage)
        whitening = whitening_matrix(covariance, shrinkage)
        return _Prior(
            np.flatnonzero(frames),
            covariance,
            before["mean"].values.ravel(),
            whitening if shrinkage < 1 else float(whitening[0, 0]),
            binary,
        )

    def _one_cell(
        self, split: xr.Dataset, prior: "_Prior", progress: Callable[[float], None]
    ) -> xr.Dataset:
        c = self.config
        change, average = self._change(split, prior, 0)
        held: list[NDArray[np.float64]] = []
        if c.draws * change.nbytes <= HELD:
            held = list(self._shifted(split, prior, progress))
        axes, tell = average[:, :0], progress
        for _ in range(len(change)):
            low, high = self._band(held or self._shifted(split, prior, tell), axes)
            tell = _silent  # the progress is that of the first band
            values, vectors, beyond = _significant(change, average, low, high, prior.binary)
            if beyond.sum() <= axes.shape[1]:
                break
            axes = vectors[:, beyond]
        number = min(c.components, len(values))
        space = split["stimulus"].dims[1:]
        shape = (number, c.lags, *split["stimulus"].shape[1:])
        sides = np.stack([vectors[:, ::-1].T[:number], vectors.T[:number]])
        sides = np.dot(sides, prior.whitening)
        sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
        coords: dict[str, Any] = {
            "rank": np.arange(len(values)),
            "side": ["largest", "smallest"],
            "component": np.arange(number),
            **lag_coordinate(np.arange(c.lags), split.attrs["frame_interval"]),
            **{str(dim): split[dim].variable for dim in space if dim in split.coords},
        }
        return xr.Dataset(
            {
                "eigenvalue": ("rank", values[::-1].copy()),
                "component_image": (
                    ("side", "component", "lag", *space),
                    sides.reshape(2, *shape),
                ),
                "null_low": low,
                "null_high": high,
                "excitatory": int((values > high).sum()),
                "suppressive": int((values < low).sum()),
            },
            coords=coords,
        ).expand_dims(cell=split["cell"].values)

    def _shifted(
        self, split: xr.Dataset, prior: "_Prior", progress: Callable[[float], None]
    ) -> Iterator[NDArray[np.float64]]:
        """The changes of the covariance for shifted spikes, without their average."""
        c, frames = self.config, len(prior.frames)
        # A slow stimulus resembles itself after a few frames, so shifts are at least 1/20 of the
        # recording.
        least = min(max(c.lags, frames // 20), frames // 2)
        random = np.random.default_rng([self.seed, 1])
        for draw in range(c.draws):
            shift = int(random.integers(least, max(frames - least, least) + 1))
            yield _without(*self._change(split, prior, shift))
            progress((draw + 1) / c.draws)

    def _band(
        self, nulls: Iterable[NDArray[np.float64]], axes: NDArray[np.float64]
    ) -> tuple[float, float]:
        """The band of the null hypothesis, in the space orthogonal to some axes (feature, axis)."""
        c = self.config
        extremes = [_extremes(_without(null, axes)) for null in nulls]
        spread = np.std(extremes, 0, ddof=1) * (1 + 1 / c.draws) ** 0.5
        margin = t.isf(c.level / 2, c.draws - 1) * spread + ROUNDING
        low, high = np.mean(extremes, 0) + margin * (-1, 1)
        return float(low), float(high)

    def _change(
        self, split: xr.Dataset, prior: "_Prior", shift: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The change of the whitened covariance before spikes that are shifted by some frames.

        The shift is circular within the frames that enter the covariance, so no spike is lost.

        Returns:
            The change (feature, feature), and the direction of the spike-triggered average
            (feature, 1), or (feature, 0) if it is not to be projected out.
        """
        response = split["response"].transpose(..., "frame", "cell")
        values = response.values.copy()
        values[..., prior.frames, 0] = np.roll(values[..., prior.frames, 0], shift, axis=-1)
        found = stc(split.assign(response=response.copy(data=values)), self.config.lags)
        change = found["stc"].values
        change -= prior.covariance
        if prior.binary:
            np.fill_diagonal(change, 0)
        average = np.dot(prior.whitening, found["sta"].values.ravel() - prior.mean)
        norm = np.linalg.norm(average)
        known = self.config.remove_sta and norm > 0
        direction = (average / norm if known else average[:0]).reshape(len(average), -1)
        if isinstance(prior.whitening, float):
            change *= prior.whitening**2
        else:
            change = np.dot(np.dot(prior.whitening, change), prior.whitening)
        return change, direction

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        cells = [row for row in _rows(result) if row[1]["eigenvalue"].notnull().any()]
        cells = cells[:CELLS_SHOWN]
        shown = {side: max(_beyond(cell)[side] for _, cell in cells) for side in SIDES}
        columns = min(AXES_SHOWN, max(1, *shown.values()))
        figure = Figure(figsize=(3.2 + 1.1 * columns, 2.6 * len(cells)), layout="constrained")
        grid = figure.add_gridspec(2 * len(cells), columns + 1, width_ratios=[2.6] + [1] * columns)
        for index, (label, cell) in enumerate(cells):
            axis = figure.add_subplot(grid[2 * index : 2 * index + 2, 0])
            axis.axhspan(
                float(cell["null_low"]), float(cell["null_high"]), color="0.9", label="null"
            )
            axis.plot(cell["rank"], cell["eigenvalue"], ".", ms=3, color="0.2")
            axis.set_ylabel(label)
            for row, side in enumerate(SIDES):
                for column in range(min(columns, cell.sizes["component"])):
                    panel = figure.add_subplot(grid[2 * index + row, column + 1])
                    draw_field(panel, cell["component_image"].sel(side=side)[column])
                    panel.set(xticks=[], yticks=[], frame_on=False)
                    weight = "bold" if column < _beyond(cell)[side] else "normal"
                    panel.set_title(f"{column + 1}", fontsize=8, pad=2, fontweight=weight)
                    if not column:
                        panel.set_ylabel(SIDES[side], fontsize=8)
        figure.axes[0].legend(frameon=False, fontsize=8)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        fields = [group["component_image"] for group in groups(result).values()]
        place = max(len(extended(field)) for field in fields)
        form = ("as courses in time", "in time (horizontal) and space", "at the lag of most power")
        return (
            "Left: eigenvalues of the spike-triggered covariance, as the relative change of the "
            "variance before spikes; the grey band is expected for spikes that do not depend on "
            "the stimulus. Right: the axes of the largest and of the smallest eigenvalues, "
            f"{form[place]}. A bold number marks an eigenvalue beyond the band."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = ["excitatory", "suppressive", "null_low", "null_high", "reason"]
            frame = group[[column for column in columns if column in group]].to_dataframe()
            frame.insert(0, "largest", group["eigenvalue"].max("rank").to_series())
            frame.insert(1, "smallest", group["eigenvalue"].min("rank").to_series())
            frame = frame.reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        if "reason" in table:
            table["reason"] = table["reason"].fillna("")
        first = points(result)
        ordered = table[[*first, *[c for c in table if c not in first]]]
        return ordered.rename(columns={"model": "dataset"})


ROUNDING = 1e-9
"""Eigenvalues that differ from 0 by rounding errors only are not beyond the band."""


SIDES = {"largest": "excitatory", "smallest": "suppressive"}
CELLS_SHOWN = 6
AXES_SHOWN = 6

HELD = 2**28
"""Bytes up to which the covariances of all shifts are held in memory and not computed again."""

LARGE = 500
"""Features from which the Lanczos method is used for the extreme eigenvalues, which is faster."""

NOTICEABLE = 0.4
"""Part of the band from which a term on the diagonal can make an eigenvalue exceed the band. In a
large random matrix, terms from about half of it have an eigenvalue apart from those of the noise
(Baik, Ben Arous & Péché 2005)."""

ITERATIONS = 20
"""Iterations of the diagonal in binary white noise."""

WHITE = 0.5
"""With a larger shrinkage, most of the correlations of a stimulus are sampling errors."""


class _Prior(NamedTuple):
    """The stimulus histories of the frames in which a cell was recorded.

    Attributes:
        frames: the indices of the frames.
        covariance: (feature, feature).
        mean: (feature,).
        whitening: (feature, feature), or a number for a white stimulus.
        binary: whether the stimulus is binary white noise.
    """

    frames: NDArray[np.int64]
    covariance: NDArray[np.float64]
    mean: NDArray[np.float64]
    whitening: NDArray[np.float64] | float
    binary: bool


def _without(change: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A covariance (feature, feature) with some orthonormal axes (feature, axis) projected out."""
    if not axes.shape[1]:
        return change
    change = change - axes @ (axes.T @ change)
    change -= (change @ axes) @ axes.T
    return change


def _significant(
    change: NDArray[np.float64],
    average: NDArray[np.float64],
    low: float,
    high: float,
    binary: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Eigenvalues and eigenvectors of a change of the covariance, and which are beyond the band.

    In binary white noise the variance of a check does not depend on the spikes, so the diagonal is
    0. It lacks the contributions of the axes, which are large for axes of few checks and then
    appear as further axes of the opposite sign. In that case they are inserted, as in principal
    factor analysis. For this the axes are added one by one, the most significant first.

    Args:
        change: (feature, feature).
        average: (feature, 0 or 1), the direction that is projected out.
        low, high: the band.
        binary: whether the stimulus is binary white noise.

    Returns:
        (feature,), increasing, (feature, feature), and (feature,).
    """
    axes, number = average, 0
    while True:
        whole = change.copy()
        for _ in range(ITERATIONS if binary else 0):
            diagonal = (axes @ (axes.T @ whole @ axes) * axes).sum(1)
            if np.abs(diagonal).max() > NOTICEABLE * min(-low, high):
                np.fill_diagonal(whole, diagonal)
        values, vectors = np.linalg.eigh(_without(whole, average))
        beyond = (values > high) | (values < low)
        if not binary or beyond.sum() <= number:
            return values, vectors, beyond
        number += 1
        order = np.argsort(-np.where(values > 0, values / high, values / low))
        axes = np.concatenate([average, vectors[:, order[:number]]], 1)


def _extremes(change: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest and the largest eigenvalue."""
    if len(change) >= LARGE:
        with suppress(ArpackError):
            start = np.ones(len(change))
            both = eigsh(change, 2, which="BE", v0=start, tol=1e-4, return_eigenvectors=False)
            return np.sort(both.astype(np.float64))
    extremes: Any = np.linalg.eigvalsh(change)[[0, -1]]
    return np.asarray(extremes, np.float64)


def _told(progress: Progress, done: int, many: int, part: float) -> None:
    progress(done + part, many, "spike-triggered covariance")


def _silent(part: float) -> None:
    """Tells nothing."""


def _rows(result: xr.DataTree) -> Any:
    """Each cell at the last point of all other sweeps, with a label."""
    for name, group in groups(result).items():
        point = group.isel({dim: -1 for dim in sweep_dims(group) if dim != "cell"})
        for cell in point["cell"].values:
            yield f"{name}\ncell {cell}", point.sel(cell=cell)


def _beyond(cell: xr.Dataset) -> dict[str, int]:
    """The number of significant axes of each side."""
    return {"largest": int(cell["excitatory"]), "smallest": int(cell["suppressive"])}
