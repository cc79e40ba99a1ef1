"""A small recording and a small model for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.model import Model, coordinates_of
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import (
    full_history,
    lag_coordinate,
    make_recording,
    make_split,
    mean_response,
)


def small_recording(
    *,
    frames: int = 2000,
    cells: int = 2,
    size: int = 8,
    lags: int = 5,
    repeats: int = 5,
    truth: bool = True,
    covariates: bool = False,
    seed: int = 0,
) -> xr.DataTree:
    """A small recording of simulated cells with a white-noise stimulus.

    Each cell sums four rectified subunits of 2 x 2 checks and has Poisson spikes.

    Args:
        frames: the number of frames of `train`, in two segments; the other splits have a quarter.
        cells: the number of cells.
        size: the number of checks along y and along x, at least 4.
        lags: the length of the temporal filter in frames.
        repeats: the number of repeats of `test`.
        truth: include the group `truth` (see `retinakit.simulation.cells_of`).
        covariates: include the pupil diameter, by which the rates are multiplied, and the running
            speed, on which they do not depend. There is no `truth` in this case.
        seed: of cells, stimulus and spikes.

    Returns:
        A recording (see `retinakit.contracts.recording`) with frames of 1/30 s: `stimulus` of +1
        and -1 (int8), `response` in spikes per bin (int16), and `rate` in every split.

    Example:
        >>> small_recording(frames=80, cells=3)["test"]["response"].shape
        (5, 20, 3)
    """
    random = np.random.default_rng(seed)
    frame_interval, check = 1 / 30, 30.0
    lag = np.arange(lags)
    temporal = np.stack(
        [np.sin(np.pi * (lag + 0.5) / lags) * np.exp(-lag / (2 + cell)) for cell in range(cells)]
    )
    temporal /= np.linalg.norm(temporal, axis=1, keepdims=True)
    subunit = np.zeros((cells, 4, size, size))
    for cell in range(cells):
        top, left = random.integers(0, size - 3, 2)
        for i, (y, x) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
            subunit[cell, i, top + y : top + y + 2, left + x : left + x + 2] = 0.5

    def split(length: int, parts: int, shown: int | None = None) -> xr.Dataset:
        stimulus = (2 * random.integers(0, 2, (length, size, size)) - 1).astype(np.int8)
        segment = np.sort(np.arange(length) % parts).astype(np.int32)
        rate = np.empty((length, cells))
        for part in range(parts):
            here = segment == part
            drive = np.einsum("fyx,csyx->csf", stimulus[here].astype(float), subunit)
            for cell in range(cells):
                filtered = [np.convolve(one, temporal[cell])[: len(one)] for one in drive[cell]]
                rate[here, cell] = 0.5 * np.maximum(filtered, 0).sum(0)
        time = np.arange(length) * frame_interval
        pupil, running = 1 + 0.5 * np.sin(time), 10 * np.abs(np.cos(0.7 * time))
        if covariates:
            rate *= pupil[:, None]
        counts = random.poisson(rate if shown is None else np.stack([rate] * shown))
        place = np.arange(size) * check
        return make_split(
            stimulus,
            counts.astype(np.int16),
            frame_interval=frame_interval,
            rate=rate,
            segment=segment,
            y=place,
            x=place,
            covariates=np.stack([pupil, running], 1) if covariates else None,
            covariate_names=["pupil", "running"],
            covariate_units=["mm", "cm/s"],
        )

    groups = {
        "train": split(frames, 2),
        "validation": split(frames // 4, 1),
        "test": split(frames // 4, 1, repeats),
    }
    if truth and not covariates:
        first = groups["train"]
        groups["truth"] = xr.Dataset(
            {
                "subunit_weight": (("cell", "subunit", "y", "x"), subunit),
                "output_weight": (("cell", "subunit"), np.ones((cells, 4))),
                "temporal": (("cell", "lag"), temporal),
                "threshold": ("cell", np.zeros(cells)),
                "gain": ("cell", np.full(cells, 0.5)),
            },
            coords={
                **lag_coordinate(lag, frame_interval),
                "subunit": np.arange(4),
                **{dim: first[dim].variable for dim in ("cell", "y", "x")},
            },
            attrs={
                "contrast": 1.0,
                "nonlinearity": "rectify",
                "output_nonlinearity": "rectify",
                "spikes": "poisson",
            },
        )
    return make_recording(groups)


class SmallModel(Model):
    """A model with a rectified linear filter for each cell, for tests that need a fitted model.

    The filter is the covariance of the response with the white-noise stimulus. There are no
    options and no iterations.

    Example:
        >>> recording = small_recording(frames=400)
        >>> model = SmallModel()
        >>> _ = model.fit(recording)
        >>> model.predict(recording["test"]).shape
        (100, 2)
    """

    weights: xr.Dataset

    @property
    def lags(self) -> int:
        return 5

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        split = recording["train"].to_dataset()
        windows, counted = self._windows(split["stimulus"])
        response = np.asarray(mean_response(split), float)[counted]
        mean = np.nanmean(response, 0)
        filters = np.nan_to_num(response - mean).T @ windows / len(windows)
        field = coordinates_of(split, self.lags)
        dims = ("cell", "lag", *split["stimulus"].dims[1:])
        shape = [field.sizes[str(dim)] for dim in dims]
        self.weights = self.field = field.assign(
            filter=(dims, filters.reshape(shape)), offset=("cell", mean)
        )
        return xr.Dataset({"validation_loss": ("check", [0.0])}, coords={"check": [0]})

    def _windows(self, stimulus: xr.DataArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The histories (window, lag and pixel), and the frames (frame,) with a full history."""
        counted = full_history(stimulus["segment"], self.lags)
        pixels = int(np.prod(stimulus.shape[1:]))
        values = stimulus.values.reshape(len(counted), pixels).astype(float)
        ends = np.flatnonzero(counted)[:, None] - np.arange(self.lags)
        return values[ends].reshape(len(ends), self.lags * pixels), counted

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        windows, counted = self._windows(split["stimulus"])
        filters = self.weights["filter"].values.reshape(self.weights.sizes["cell"], -1)
        rate = np.full((len(counted), len(filters)), np.nan)
        rate[counted] = np.maximum(windows @ filters.T + self.weights["offset"].values, 0)
        return rate

    def parameters(self) -> xr.Dataset:
        return self.weights

    def state(self) -> xr.Dataset:
        return self.weights

    def restore(self, state: xr.Dataset) -> None:
        self.weights = self.field = state
