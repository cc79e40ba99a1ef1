"""Linear regression of each cell's response on the stimulus around its receptive field."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from retinakit.contracts import (
    Config,
    Model,
    Progress,
    Shown,
    UserError,
    coordinates_of,
    full_history,
    mean_response,
    segments,
    silent,
)
from retinakit.regression import filter_stimulus, spread_over_history
from retinakit.spikes import locations


class RegressionConfig(Config):
    """Options of the regressors."""

    lags: int = Field(1, ge=1, description="Frames of history, the present one included.")
    crop: int | None = Field(
        17,
        ge=1,
        description="Side of the square crop around the centre of the cell's receptive field, in "
        "checks; null: the whole stimulus.",
    )
    centre: Literal["sta", "truth"] = Field(
        "sta",
        description="Centre of the receptive field. 'sta': the peak of the smoothed "
        "spike-triggered average; 'truth': the location in the recording's group 'truth'.",
    )
    intercept: bool = Field(True, description="Whether to fit an intercept.")


class PenalisedConfig(RegressionConfig):
    """Options of the regressors, and how validation chooses the penalty."""

    one_penalty: bool = Field(
        False,
        description="Whether validation chooses one penalty for all cells together, which suits "
        "cells of one type, instead of one penalty for each cell.",
    )


class RidgeConfig(PenalisedConfig):
    """Options of the regressors, and the penalties that validation chooses from."""

    penalties: list[float] = Field(
        [10, 100, 300, 1000, 1500, 2000, 2500, 3000, 5000, 8000, 10_000, 15_000, 20_000],
        min_length=1,
        description="Penalties λ in Σ error² + λ Σ w², from which validation chooses.",
    )


class LassoConfig(PenalisedConfig):
    """Options of the regressors, and the penalties that validation chooses from."""

    penalties: list[float] = Field(
        [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
        min_length=1,
        description="Penalties λ in mean(error²) / 2 + λ Σ |w|, from which validation chooses.",
    )


class Regression(Model):
    """Base of the linear regressions.

    The predicted response of a cell is Σ kernel · stimulus + offset, in the units of the response;
    it may be negative. A subclass lists estimators. Each is fitted to the training frames, and the
    one with the smallest mean squared error on the validation frames is used.

    `parameters()` has `kernel (cell, lag, [channel,] y, x)`, 0 outside the crop, `offset (cell)`
    and the chosen `penalty (cell)`.

    Raises:
        UserError: by `fit`, if a cell has no response in the training frames, no cell has one in
            the validation frames, or `centre` is 'truth' and the locations are not known.
    """

    parts: xr.Dataset

    @abstractmethod
    def estimators(self) -> Iterator[tuple[float, Any]]:
        """Yields each penalty with a scikit-learn estimator that has this penalty."""

    @property
    def lags(self) -> int:
        lags: int = self.config.lags
        return lags

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        train, validation = (recording[name].to_dataset() for name in ("train", "validation"))
        field = coordinates_of(train, self.lags)
        corners, side = self._crops(recording)
        seen = [_Windows(split, self.lags) for split in (train, validation)]
        cells = field.sizes["cell"]
        shape = tuple(train["stimulus"].sizes[d] for d in train["stimulus"].dims[1:])
        kernel = np.zeros((cells, self.lags, *shape), np.float32)
        penalties = np.array([penalty for penalty, _ in self.estimators()])
        offset, losses, tried = np.zeros(cells), np.full((cells, len(penalties)), np.nan), []
        crops = [
            (..., slice(top, top + side[0]), slice(left, left + side[1])) for top, left in corners
        ]
        for cell, crop in enumerate(crops):
            (x, y), (x_held_out, y_held_out) = (windows.of(cell, crop) for windows in seen)
            if len(y) == 0:
                raise UserError(
                    f"cell {field['cell'].values[cell]} has no response in a frame of 'train' with "
                    f"{self.lags} frames of history; leave it out, or use fewer lags"
                )
            fitted = [estimator.fit(x, y) for _, estimator in self.estimators()]
            if len(y_held_out):
                losses[cell] = [((e.predict(x_held_out) - y_held_out) ** 2).mean() for e in fitted]
            tried.append([(estimator.coef_, estimator.intercept_) for estimator in fitted])
            progress(cell + 1, cells)
        together = isinstance(self.config, PenalisedConfig) and self.config.one_penalty
        if np.isnan(losses).all():
            raise UserError(
                f"no cell has a response in a frame of 'validation' with {self.lags} frames of "
                "history; use fewer lags or longer segments"
            )
        mean = np.nanmean(losses, 0)
        # A cell without validation responses gets the penalty that is best for the other cells.
        error = mean[None] if together else np.where(np.isnan(losses), mean, losses)
        best = np.broadcast_to(error.argmin(1), cells)
        for cell, crop in enumerate(crops):
            weights, offset[cell] = tried[cell][best[cell]]
            kernel[cell][crop] = weights.reshape(kernel[cell][crop].shape)
        dims = ("cell", "lag", *train["stimulus"].dims[1:])
        self.parts = self.field = field.assign(
            kernel=(dims, kernel),
            offset=("cell", offset),
            penalty=("cell", penalties[best]),
        )
        return xr.Dataset(
            {"validation_loss": ("check", mean)},
            coords={"check": np.arange(len(penalties)), "penalty": ("check", penalties)},
        )

    def _crops(self, recording: xr.DataTree) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first checks (cell, 2) and the sides (2,) of the crops, inside the stimulus."""
        c, train = self.config, recording["train"].to_dataset()
        field = np.array([train.sizes["y"], train.sizes["x"]])
        if c.crop is None:
            return np.zeros((train.sizes["cell"], 2), np.int64), field
        side = np.minimum(c.crop, field)
        if c.centre == "sta":
            middle = locations(train, c.lags)
        else:
            truth = recording["truth"].to_dataset() if "truth" in recording.children else {}
            if "location_y" not in truth or "location_x" not in truth:
                raise UserError(
                    "centre is 'truth' and the recording has no 'location_y' and 'location_x' in "
                    "'truth'; use centre: sta"
                )
            middle = np.stack([truth["location_y"].values, truth["location_x"].values], 1)
            middle = middle.round().astype(np.int64)
        return np.clip(middle - side // 2, 0, field - side), side

    def respond(self, split: xr.Dataset) -> NDArray[np.float64]:
        kernel, offset = self.parts["kernel"].values, self.parts["offset"].values
        return filter_stimulus(split["stimulus"], kernel, segments(split)) + offset

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        if layer is not None:
            self.check_layer(layer)
        split = self.prepare(split)
        kernel = self.parts["kernel"].values
        weight = self.broadcast_weight(weight, split, (split.sizes["frame"], len(kernel)))
        predicted = self.respond(split)
        return (weight * predicted).sum(1), spread_over_history(weight, kernel, segments(split))

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        return self.parts

    def state(self) -> xr.Dataset:
        return self.parameters()

    def restore(self, state: xr.Dataset) -> None:
        self.parts = self.field = state


class _Windows:
    """The regressors and the responses of one split."""

    def __init__(self, split: xr.Dataset, lags: int):
        self.lags = lags
        self.stimulus = split["stimulus"].values
        self.response = np.asarray(mean_response(split), float)
        self.full = full_history(split["segment"], lags)

    def of(self, cell: int, crop: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Regressors (frame, lag x check) and responses (frame,), where both are known."""
        frames = np.flatnonzero(self.full & np.isfinite(self.response[:, cell]))
        part = self.stimulus[crop].reshape(len(self.stimulus), -1)
        lagged = [part[frames - lag] for lag in range(self.lags)]
        return np.concatenate(lagged, 1, dtype=np.float64), self.response[frames, cell]


class OLS(Regression):
    """Ordinary least squares of the response on the stimulus around the receptive field.

    For n independent frames of white noise, p regressors, rates of variance V and noise of variance
    S, the expected fraction of explained variance is FEV = 1 - (S / V) p / (n - p - 1). Parameters,
    units and errors are those of `Regression`.

    Example:
        >>> from retinakit.testing import small_recording
        >>> model = OLS.with_options(lags=5, crop=6)
        >>> _ = model.fit(small_recording())
        >>> dict(model.parameters()["kernel"].sizes)
        {'cell': 2, 'lag': 5, 'y': 8, 'x': 8}
    """

    Config = RegressionConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3, "crop": 5}

    def estimators(self) -> Iterator[tuple[float, Any]]:
        from sklearn.linear_model import LinearRegression

        yield 0.0, LinearRegression(fit_intercept=self.config.intercept)


class Ridge(Regression):
    """Least squares with a penalty on the squared weights (Klindt et al. 2017, section 4.2).

    Minimises Σ (response - prediction)² + penalty · Σ kernel². Parameters, units and errors are
    those of `Regression`.

    Example:
        >>> from retinakit.testing import small_recording
        >>> model = Ridge.with_options(lags=5, crop=6, penalties=[10, 100])
        >>> _ = model.fit(small_recording())
        >>> bool(model.parameters()["penalty"].isin([10, 100]).all())
        True
    """

    Config = RidgeConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3, "crop": 5, "penalties": [10, 100]}

    def estimators(self) -> Iterator[tuple[float, Any]]:
        from sklearn.linear_model import Ridge

        for weight in self.config.penalties:
            yield weight, Ridge(weight, fit_intercept=self.config.intercept)


class Lasso(Regression):
    """Least squares with a penalty on the absolute weights (Klindt et al. 2017, section 4.2).

    Minimises half the mean squared error + penalty · Σ |kernel|. Parameters, units and errors are
    those of `Regression`.

    Example:
        >>> from retinakit.testing import small_recording
        >>> model = Lasso.with_options(lags=5, crop=6, penalties=[1e-3, 1e-2])
        >>> _ = model.fit(small_recording())
        >>> bool((model.parameters()["kernel"] == 0).any())
        True
    """

    Config = LassoConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3, "crop": 5, "penalties": [1e-3, 1e-2]}

    def estimators(self) -> Iterator[tuple[float, Any]]:
        from sklearn.linear_model import Lasso

        for weight in self.config.penalties:
            yield weight, Lasso(weight, fit_intercept=self.config.intercept)
