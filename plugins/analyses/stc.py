"""Spike-triggered covariance: stimulus directions whose variance differs before spikes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

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
from retinakit.spikes import stc

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class STCConfig(Config):
    """Options of the covariance."""

    lags: int = Field(
        10, ge=1, description="Frames of history; 1 for a stimulus of temporal_collapse."
    )
    components: int = Field(
        8, ge=1, description="Number of eigenvectors kept, of the largest and of the smallest ones."
    )
    remove_sta: bool = Field(
        True, description="Project the spike-triggered average out of the covariance."
    )
    draws: int = Field(
        10, ge=2, description="Number of shifts of the spikes for the band of the null hypothesis."
    )
    prior_frames: int = Field(
        50_000,
        ge=100,
        description="Number of random frames from which the covariance of the stimulus is "
        "estimated.",
    )


class STC(Analysis):
    """Eigenvectors of the spike-triggered covariance, with significance from shifted spikes.

    The matrix is C_spike - C_stimulus: the covariance of the stimulus histories before the spikes
    of the training frames, minus the covariance of all histories, with the spike-triggered average
    projected out. Directions with large eigenvalues excite the cell with either sign, such as
    subunits; those with small eigenvalues suppress it. The band from `null_low` to `null_high
    (cell)` is expected for spikes that do not depend on the stimulus: the smallest and the largest
    eigenvalue for spikes shifted against the stimulus, mean minus and plus two standard deviations.

    The result has all eigenvalues, `eigenvalue (cell, rank)`, largest first, in squared units of
    the stimulus; the eigenvectors `component_image (cell, side, component, lag, [channel,] y, x)`
    of the "largest" and the "smallest" `side`; and the numbers of `excitatory (cell)` eigenvalues
    above the band and of `suppressive (cell)` ones below it.

    Raises:
        UserError: if a cell has no spike with a full history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> analysis = STC.with_options(lags=3, components=2, draws=2, prior_frames=300)
        >>> result = analysis.run(small_recording())
        >>> dict(result["component_image"].sizes)
        {'cell': 2, 'side': 2, 'component': 2, 'lag': 3, 'y': 8, 'x': 8}
    """

    Config = STCConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3, "components": 2, "draws": 2, "prior_frames": 300}

    def run(self, data: xr.DataTree, progress: Progress = silent) -> xr.Dataset:
        train = data["train"].to_dataset()
        prior = self._prior(train)
        many, cells = train.sizes["cell"], []
        for i in range(many):

            def tell(part: float, done: int = i) -> None:
                progress(done + part, many, "spike-triggered covariance")

            cells.append(self._one_cell(train.isel(cell=[i]), prior, tell))
        result: xr.Dataset = xr.concat(cells, "cell")
        return result

    def _one_cell(
        self, split: xr.Dataset, prior: NDArray[np.float64], progress: Callable[[float], None]
    ) -> xr.Dataset:
        c = self.config
        values, vectors = np.linalg.eigh(self._difference(split, prior, 0))
        random = np.random.default_rng([self.seed, 1])
        frames = split.sizes["frame"]
        extremes = []
        for draw in range(c.draws):
            shift = int(random.integers(min(c.lags, frames - 1), max(frames - c.lags, c.lags + 1)))
            null = np.linalg.eigvalsh(self._difference(split, prior, shift))
            extremes.append((null[0], null[-1]))
            progress((draw + 1) / c.draws)
        (low, high), (low_sd, high_sd) = np.mean(extremes, 0), np.std(extremes, 0, ddof=1)
        low, high = low - 2 * low_sd, high + 2 * high_sd
        number = min(c.components, len(values))
        space = split["stimulus"].dims[1:]
        shape = (number, c.lags, *split["stimulus"].shape[1:])
        sides = np.stack([vectors[:, ::-1].T[:number], vectors.T[:number]])
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

    def _prior(self, split: xr.Dataset) -> NDArray[np.float64]:
        """The covariance (lag · y · x, lag · y · x) of the stimulus, from random frames."""
        known = np.flatnonzero(full_history(split["segment"], self.config.lags))
        random = np.random.default_rng(self.seed)
        chosen = random.choice(known, min(self.config.prior_frames, len(known)), replace=False)
        ones = xr.zeros_like(mean_response(split).isel(cell=[0]), dtype=float)
        ones[{"frame": chosen}] = 1
        everything = split.drop_vars("response").isel(cell=[0]).assign(response=ones)
        covariance: NDArray[np.float64] = stc(everything, self.config.lags)["stc"].values
        return covariance

    def _difference(
        self, split: xr.Dataset, prior: NDArray[np.float64], shift: int
    ) -> NDArray[np.float64]:
        """The spike-triggered covariance minus the prior, for spikes shifted by some frames."""
        shifted = split.assign(response=split["response"].roll(frame=shift))
        found = stc(shifted, self.config.lags)
        if not found["spikes"] > 0:
            cell = split["cell"].item()
            raise UserError(
                f"cell {cell} has no spike with {self.config.lags} frames of history; leave out "
                "the cell"
            )
        difference: NDArray[np.float64] = found["stc"].values - prior
        mean = found["sta"].values.ravel()
        norm = np.linalg.norm(mean)
        if self.config.remove_sta and norm > 0:
            direction = mean / norm
            difference -= np.outer(direction, direction @ difference)
            difference -= np.outer(difference @ direction, direction)
        return difference

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        rows = list(_rows(result))[:6]
        shown = min(6, max(row.sizes["component"] for _, row in rows))
        figure = Figure(figsize=(3.2 + 1.1 * shown, 1.7 * len(rows)), layout="constrained")
        grid = figure.add_gridspec(len(rows), shown + 1, width_ratios=[2.6] + [1] * shown)
        for index, (label, row) in enumerate(rows):
            axis = figure.add_subplot(grid[index, 0])
            axis.axhspan(float(row["null_low"]), float(row["null_high"]), color="0.9", label="null")
            axis.plot(row["rank"], row["eigenvalue"], ".", ms=3, color="0.2")
            axis.set_ylabel(label)
            for component in range(shown):
                image_axis = figure.add_subplot(grid[index, component + 1])
                image_axis.set(xticks=[], yticks=[], frame_on=False)
                if component >= row.sizes["component"]:
                    continue
                image = _strongest_frame(row["component_image"].sel(side="largest")[component])
                limit = float(np.abs(image).max()) or 1.0
                image_axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
                beyond = float(row["eigenvalue"][component]) > float(row["null_high"])
                image_axis.set_title(
                    f"{component + 1}", fontsize=8, fontweight="bold" if beyond else "normal"
                )
        figure.axes[0].legend(frameon=False, fontsize=8)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return (
            "Left: eigenvalues of the spike-triggered covariance; the grey band is expected for "
            "spikes that do not depend on the stimulus. Right: eigenvectors of the largest "
            "eigenvalues, at the lag of most power. A bold number marks an eigenvalue above the "
            "band."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = ["excitatory", "suppressive", "null_low", "null_high"]
            frame = group[columns].to_dataframe()
            frame.insert(0, "largest", group["eigenvalue"].max("rank").to_series())
            frame.insert(1, "smallest", group["eigenvalue"].min("rank").to_series())
            frame = frame.reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        first = points(result)
        ordered = table[[*first, *[c for c in table if c not in first]]]
        return ordered.rename(columns={"model": "dataset"})


def _rows(result: xr.DataTree) -> Any:
    """Each cell at the last point of all other sweeps, with a label."""
    for name, group in groups(result).items():
        point = group.isel({dim: -1 for dim in sweep_dims(group) if dim != "cell"})
        for cell in point["cell"].values:
            yield f"{name}\ncell {cell}", point.sel(cell=cell)


def _strongest_frame(component: xr.DataArray) -> NDArray[Any]:
    """The image (y, x) at the lag (and channel) of a component that has most power."""
    others = [dim for dim in component.dims if dim not in ("y", "x")]
    flat = component.stack(place=others).transpose("place", "y", "x").values
    frame: NDArray[Any] = flat[(flat**2).sum((1, 2)).argmax()]
    return frame
