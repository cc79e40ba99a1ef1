"""The quadratic (energy) model: a linear filter and squared filters, for complex cells."""

from dataclasses import dataclass, replace
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
    make_split,
    mean_frame,
    mean_response,
    require_uncentred,
    segments,
    silent,
    space_sizes,
)
from retinakit.regression import (
    Drive,
    Exponential,
    FilterFit,
    Fitted,
    Histories,
    Images,
    Nonlinearity,
    Penalty,
    QuadraticForm,
    Regressors,
    Softplus,
    cosine_images,
    filter_history,
    project,
    refine,
    spread_over_history,
)
from retinakit.spikes import stc, stimulus_covariance, white_shrinkage, whitening_matrix

Array = NDArray[np.float64]

MOST_FEATURES = 4000
"""Largest number of lags times images; the covariance is a matrix of its square."""

RIDGE = 1e-2
"""Precision of the prior of the weights, whose regressors have about unit variance."""


class QuadraticConfig(Config):
    """Options of the quadratic model."""

    lags: int = Field(
        16, ge=1, description="Number of frames of history, including the current frame."
    )
    images: int = Field(
        100,
        ge=1,
        description="The filters are sums of this number of images, those of the lowest spatial "
        "frequencies; all, if the stimulus has fewer pixels. Crop a large screen to the field of "
        "the cells, because these images are coarse on it.",
    )
    components: int = Field(
        16,
        ge=0,
        description="Largest number of squared filters; validation chooses the number.",
    )
    refine: bool = Field(
        True,
        description="Whether all parameters are fitted by likelihood after the number of squared "
        "filters is chosen, until the validation loss increases; otherwise only the weights are.",
    )
    nonlinearity: Literal["softplus", "exponential"] = Field(
        "softplus",
        description="Output nonlinearity of the drive x: gain · log(1 + exp(x)), or exp(x).",
    )


@dataclass
class _Cell:
    form: QuadraticForm
    fitted: Fitted
    """The fit of the weights, before the refinement."""

    components: int
    """The number of squared filters."""


class Quadratic(Model):
    """A linear filter, several squared filters and a static nonlinearity for each cell.

    The rate in spikes per bin is f(linear · s + Σ_j weight_j (filter_j · s)² + offset), where s is
    the stimulus history: a quadratic form of low rank (Park & Pillow 2011), of which energy models
    of complex cells are an example. The squared filters are the axes of the spike-triggered
    covariance in whitened coordinates whose variances differ most from those of the stimulus, of
    excitatory (positive weight) and suppressive (negative weight) ones alike; the linear filter is
    the whitened spike-triggered average. Their weights maximise the Poisson likelihood, which is a
    problem of few parameters, and the number of squared filters has the smallest validation loss.
    From there, the likelihood is maximised over filters and weights together, until the validation
    loss increases.

    `parameters()` has the linear filter `kernel (cell, lag, [channel,] y, x)`, `quadratic_filter
    (cell, component, lag, [channel,] y, x)` in stimulus units such that filter · s has unit
    variance, `quadratic_weight (cell, component)`, 0 for components that are not used, and `offset
    (cell)`.

    Raises:
        RecordingError: by `fit`, if the recording does not keep its contract, or its responses are
            centred on 0.
        UserError: by `fit`, if the covariance is too large or a response is negative.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = Quadratic.with_options(lags=3, images=16, components=2)
        >>> _ = model.fit(recording)
        >>> dict(model.parameters()["quadratic_filter"].sizes)
        {'cell': 2, 'component': 2, 'lag': 3, 'y': 8, 'x': 8}
    """

    Config = QuadraticConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 5, "images": 16, "components": 2}

    parts: xr.Dataset

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
        c = self.config
        train, held_out = (recording[name].to_dataset() for name in ("train", "validation"))
        require_uncentred(train["response"])
        field = coordinates_of(train, c.lags)
        images = self._images(field)
        if c.lags * images.number > MOST_FEATURES:
            raise UserError(
                f"{c.lags} lags of {images.number} images are {c.lags * images.number} numbers, of "
                f"which the covariance is too large; make images at most {MOST_FEATURES // c.lags}"
            )
        centre = mean_frame(train["stimulus"])
        whole = (slice(None), slice(None))
        seen = [project(s["stimulus"], centre, [(whole, images)])[0] for s in (train, held_out)]
        shown = make_split(
            seen[0][:, None],
            train["response"].values,
            frame_interval=train.attrs["frame_interval"],
            segment=train["segment"].values,
        )
        prior = stimulus_covariance(shown, c.lags)["covariance"].values
        full = int(full_history(train["segment"], c.lags).sum())
        whitening = whitening_matrix(prior, max(0.02, white_shrinkage(prior, full)))
        filters: list[Array] = []
        tried: list[list[Fitted]] = []
        data: list[list[Histories]] = []
        losses = np.empty((field.sizes["cell"], c.components + 1))
        for cell in range(len(losses)):
            filters.append(self._filters(shown.isel(cell=[cell]), prior, whitening))
            data.append(
                [
                    _histories(split, cell, c.lags, of)
                    for split, of in zip((train, held_out), seen, strict=True)
                ]
            )
            fits, losses[cell] = self._fit_cell(filters[-1], *data[-1])
            tried.append(fits)
            progress(cell + 1, len(losses), "quadratic models")
        known = np.isfinite(losses)
        mean = np.where(known, losses, 0).sum(0) / np.maximum(known.sum(0), 1)
        mean = np.where(known.any(0), mean, np.nan)
        cells = []
        refined = np.full(len(losses), np.nan)
        for cell, (of_cell, fits, loss) in enumerate(zip(filters, tried, losses, strict=True)):
            # A cell without validation responses has the number that is best for the others.
            by = loss if np.isfinite(loss).any() else mean
            number = int(np.nanargmin(by)) if np.isfinite(by).any() else 0
            drive = fits[number].drive
            form = QuadraticForm(
                of_cell[: 1 + number], drive.weights, drive.offset, np.asarray(drive.shape)
            )
            if c.refine and np.isfinite(loss).any():
                form, steps = refine(form, whitening, self._nonlinearity(), *data[cell])
                refined[cell] = min(steps)
            cells.append(_Cell(form, fits[number], number))
            progress(cell + 1, len(losses), "refinement of quadratic models")
        self._store(field, cells, centre)
        warnings = ["" if cell.fitted.converged else "the fit has not converged" for cell in cells]
        return xr.Dataset(
            {
                "validation_loss": ("check", mean),
                "cell_validation_loss": (("cell", "check"), losses),
                "refined_validation_loss": ("cell", refined),
                "components": ("cell", [cell.components for cell in cells]),
                "converged": ("cell", [cell.fitted.converged for cell in cells]),
                "warning": ("cell", warnings),
            },
            coords={
                "check": np.arange(losses.shape[1]),
                "squared_filters": ("check", np.arange(losses.shape[1])),
                "cell": field["cell"].variable,
            },
        )

    def _images(self, field: xr.Dataset) -> Images:
        shape = tuple(space_sizes(field).values())
        return cosine_images(shape, min(self.config.images, int(np.prod(shape))))

    def _filters(self, one: xr.Dataset, prior: Array, whitening: Array) -> Array:
        """The linear filter and the axes (1 + component, lag, image), for unit variance."""
        moments = stc(one, self.lags)
        if not moments["spikes"] > 0:  # the rate of a silent cell is constant
            return np.zeros((1 + self.config.components, self.lags, one.sizes["x"]))
        average = whitening @ moments["sta"].values.ravel()
        change = whitening @ (moments["stc"].values - prior) @ whitening
        norm = float(np.linalg.norm(average))
        linear = average / norm if norm > 0 else np.eye(len(average))[0]
        values, vectors = np.linalg.eigh(change)
        order = np.argsort(-np.abs(values))[: self.config.components]
        whitened = np.concatenate([linear[None], vectors[:, order].T])
        return (whitened @ whitening).reshape(len(whitened), self.lags, -1)

    def _fit_cell(
        self, filters: Array, train: Histories, held_out: Histories
    ) -> tuple[list[Fitted], Array]:
        """The fits with 0, 1, ... squared filters, and their validation losses."""
        fits: list[Fitted] = []
        regressors = [_squared(of.filtered(filters)) for of in (train, held_out)]
        losses = np.full(self.config.components + 1, np.nan)
        for number in range(len(filters)):
            problem = self._problem(train, regressors[0][:, : 1 + number])
            fits.append(_fit(problem, fits[-1].drive if fits else None))
            if held_out.used.any():
                other = self._problem(held_out, regressors[1][:, : 1 + number])
                drive = other.drive(fits[-1].drive)[held_out.used]
                rate, _, _ = other.nonlinearity(drive, fits[-1].drive.shape)
                losses[number] = other.losses(rate).mean()
        return fits, losses

    def _nonlinearity(self) -> Nonlinearity:
        return Softplus() if self.config.nonlinearity == "softplus" else Exponential()

    def _problem(self, of: Histories, regressors: NDArray[np.float32]) -> FilterFit:
        """The fit of the weights of the linear and of the squared regressors."""
        nothing = np.zeros((len(of.used), 1), np.float32)
        data = Regressors(nothing, of.response, of.used, regressors)
        return FilterFit(data, np.eye(1), self._nonlinearity(), fixed_courses=True)

    def _store(self, field: xr.Dataset, cells: list[_Cell], centre: Array) -> None:
        components = self.config.components
        filters = np.zeros((len(cells), 1 + components, *cells[0].form.filters.shape[1:]))
        weights = np.zeros((len(cells), 1 + components))
        for index, cell in enumerate(cells):
            used = cell.components + 1
            filters[index, :used] = cell.form.filters
            weights[index, :used] = cell.form.weights
        self.field = field
        self.parts = xr.Dataset(
            {
                "filter": (("cell", "part", "lag", "image"), filters),
                "weight": (("cell", "part"), weights),
                "offset": ("cell", [cell.form.offset for cell in cells]),
                "shape": (
                    ("cell", "shape_parameter"),
                    np.array([cell.form.shape for cell in cells]),
                ),
                "centre": (tuple(space_sizes(field)), centre),
            }
        )

    def respond(self, split: xr.Dataset) -> Array:
        parts, whole = self.parts, (slice(None), slice(None))
        images = self._images(self.field)
        (seen,) = project(split["stimulus"], parts["centre"].values, [(whole, images)])
        rates = np.empty((len(seen), self.field.sizes["cell"]))
        for cell in range(rates.shape[1]):
            regressors = _squared(filter_history(seen, parts["filter"].values[cell]))
            drive = regressors @ parts["weight"].values[cell] + float(parts["offset"][cell])
            rates[:, cell] = self._nonlinearity()(drive, parts["shape"].values[cell])[0]
        return rates

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[Array, NDArray[np.float32]]:
        if layer is not None:
            self.check_layer(layer)
        split, parts = self.prepare(split), self.parts
        frames, whole = split.sizes["frame"], (slice(None), slice(None))
        weight = self.broadcast_weight(weight, split, (frames, self.field.sizes["cell"]))
        images = self._images(self.field)
        (seen,) = project(split["stimulus"], parts["centre"].values, [(whole, images)])
        value, by_image = np.zeros(frames), np.zeros(seen.shape, np.float32)
        for cell in np.flatnonzero(weight.any(0)):
            filters, weights = parts["filter"].values[cell], parts["weight"].values[cell]
            filtered = filter_history(seen, filters)
            drive = _squared(filtered) @ weights + float(parts["offset"][cell])
            rate, slope, _ = self._nonlinearity()(drive, parts["shape"].values[cell])
            value += weight[:, cell] * rate
            by_filter = weights * np.c_[np.ones(frames), 2 * filtered[:, 1:]]
            by_filter *= (weight[:, cell] * slope)[:, None]
            by_image += spread_over_history(by_filter, filters[:, :, None], segments(split))[:, 0]
        gradient = by_image @ images.matrix().T.astype(np.float32)
        return value, gradient.reshape(split["stimulus"].shape)

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        space = space_sizes(self.field)
        filters = self.parts["filter"].values @ self._images(self.field).matrix().T
        filters = filters.reshape(*filters.shape[:3], *space.values()).astype(np.float32)
        weight = self.parts["weight"].values
        linear = weight[:, 0].reshape(-1, *[1] * (1 + len(space))) * filters[:, 0]
        components = np.arange(filters.shape[1] - 1)
        return self.field.assign_coords(component=components).assign(
            kernel=(("cell", "lag", *space), linear.astype(np.float32)),
            quadratic_filter=(("cell", "component", "lag", *space), filters[:, 1:]),
            quadratic_weight=(("cell", "component"), weight[:, 1:]),
            offset=("cell", self.parts["offset"].values),
        )

    def state(self) -> xr.Dataset:
        self.check_fitted()
        return self.field.merge(self.parts)

    def restore(self, state: xr.Dataset) -> None:
        self.parts = state.drop_vars(list(state.coords))
        self.field = state.drop_vars(list(state.data_vars))


def _histories(split: xr.Dataset, cell: int, lags: int, seen: NDArray[np.float32]) -> Histories:
    response = np.asarray(mean_response(split).isel(cell=cell), float)
    used = full_history(split["segment"], lags) & np.isfinite(response)
    return Histories(seen, np.where(used, response, 0), used)


def _squared(filtered: NDArray[np.float32]) -> NDArray[np.float32]:
    """The regressors (frame, filter): the filtered stimulus, squared but for the first filter."""
    return np.concatenate([filtered[:, :1], filtered[:, 1:] ** 2], 1)


def _fit(problem: FilterFit, start: Drive | None) -> Fitted:
    """The weights of the regressors, from those of one regressor less."""
    number = problem.data.extra.shape[1]
    if start is None:
        used = problem.data.used
        mean = max(float(problem.data.response[used].mean()), 0.5 / max(int(used.sum()), 1))
        offset, shape = problem.nonlinearity.start(mean)
        start = Drive(np.eye(1), np.zeros((1, 1)), np.zeros(0), offset, shape)
    more = np.zeros(number - len(start.weights))
    start = replace(start, weights=np.r_[start.weights, more])
    ridge = Penalty(np.ones(1), np.ones(1), 1.0, RIDGE * np.eye(number))
    return problem.run(start, ridge)
