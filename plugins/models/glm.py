"""Generalized linear model with spike history and coupling (Pillow et al. 2008)."""

import logging
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from retinakit.contracts import (
    SPIKES_PER_BIN,
    Config,
    Model,
    Progress,
    Shown,
    UserError,
    coordinates_of,
    full_history,
    segments,
    silent,
)
from retinakit.regression import (
    CountModel,
    GLMData,
    GLMFit,
    averages,
    filter_spaces,
    filter_stimulus,
    fit_glm,
    history_drive,
    history_regressors,
    orthonormal,
    project_cells,
    raised_cosines,
    spread_over_history,
)
from retinakit.simulation import simulate_with_feedback

Array = NDArray[np.float64]

MOST_LIMITED = 100
"""A larger largest count is not a limit: the probability of a limited count is a sum over all
smaller counts."""

CEILING = 10.0
"""A simulated rate is too high if it is above this multiple of the cell's largest count."""

TOO_OFTEN = 0.01
"""A simulation is unstable if rates are too high in more than this fraction of the bins."""

logger = logging.getLogger("retinakit")


class GLMConfig(Config):
    """Options of the GLM."""

    lags: int = Field(
        20, ge=1, description="Frames of stimulus history, including the current frame."
    )
    rank: int = Field(
        1,
        ge=1,
        description="The stimulus filter is a sum of this many products of a spatial map and a "
        "temporal filter. Of a full-field stimulus, it is a temporal filter.",
    )
    side: int = Field(
        41, ge=1, description="Largest side, in checks, of the square in which a filter is fitted."
    )
    history_length: float = Field(
        250.0,
        ge=0,
        description="Length in ms of the filter of the cell's own spikes; 0: no such filter.",
    )
    history_functions: int = Field(
        6, ge=1, description="Number of raised cosines of which the history filter is made."
    )
    coupling_length: float = Field(
        250.0,
        ge=0,
        description="Length in ms of the filters of the spikes of the other cells; 0: none.",
    )
    coupling_functions: int = Field(
        4, ge=1, description="Number of raised cosines of which a coupling filter is made."
    )
    nonlinearity: Literal["exponential", "softplus"] = Field(
        "exponential", description="Rate for the drive u: exp(u), or log(1 + exp(u))."
    )
    likelihood: Literal["poisson", "bernoulli"] = Field(
        "poisson",
        description="'poisson': of spike counts; 'bernoulli': of at most one spike in a bin.",
    )
    limit: bool = Field(
        True,
        description="Whether a cell's largest count in the training frames stands for this many "
        "spikes or more, because refractoriness limits the spikes of a bin. Predicted and "
        "simulated counts are then not larger.",
    )
    iterations: int = Field(100, ge=1, description="Largest number of Newton steps of a cell.")


class GLM(Model):
    """Stimulus filter, spike history, coupling and covariates, fitted by Newton's method.

    The rate of a cell in a bin is f(Σ kernel · stimulus + Σ history · own spikes before + Σ
    coupling · spikes of the other cells before + Σ covariate_weight · covariates + offset), with f
    exponential or softplus (Truccolo et al. 2005, Pillow et al. 2008). The spike count is Poisson
    distributed with this rate up to the cell's largest count (see `limit`), or has at most one
    spike. History and coupling filters are sums of raised cosines in the logarithm of time. Lag 1
    is the bin before that of the response.

    The history filter, each coupling filter and each covariate have a Gaussian prior whose strength
    is chosen by evidence, so that the filter of an absent coupling is near 0. The prior of the
    stimulus filter is smooth, with lengths chosen by evidence (see
    `retinakit.regression.filter_spaces`).

    `fit` returns along `check`, the Newton steps, `train_loss` and `validation_loss` in nats per
    bin, and `decrement (check, cell)`, the gain that is expected of a step, in bits per spike. A
    cell has `converged` if this is below 1e-5; otherwise there is a warning.

    `predict` returns the expected counts given the recorded spikes before each frame, for each
    repeat of the responses. Frames without a full history of the stimulus or of the spikes in their
    segment are not predicted. Missing responses count as the cell's mean response in training.
    `simulate` feeds the model's own spikes back.

    `parameters()` has `kernel (cell, lag, [channel,] y, x)`, `history (cell, history_lag)`,
    `coupling (cell, from_cell, coupling_lag)`, 0 for the cell itself, `covariate_weight (cell,
    covariate)` and `offset (cell)`, all in units of the drive.

    Raises:
        UserError: by `fit`, if responses are negative or a cell has no response in a frame with a
            full history; by `predict`, if the split lacks responses or covariates.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = GLM.with_options(lags=5)
        >>> curves = model.fit(recording)
        >>> bool(curves["converged"].all())
        True
        >>> dict(model.parameters()["coupling"].sizes)
        {'cell': 2, 'from_cell': 2, 'coupling_lag': 8}
        >>> dict(model.simulate(recording["test"], repeats=3).sizes)
        {'repeat': 3, 'frame': 500, 'cell': 2}
    """

    Config = GLMConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 3}

    parts: xr.Dataset

    @property
    def lags(self) -> int:
        sizes = self.parts.sizes if hasattr(self, "parts") else {}
        longest = max(sizes.get("history_lag", 0), sizes.get("coupling_lag", 0))
        return max(int(self.config.lags), longest + 1)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The variables of a split on which predictions depend."""
        spikes = self.config.history_length > 0 or self.config.coupling_length > 0
        return ("stimulus", "response") if spikes else ("stimulus",)

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        c = self.config
        train, validation = (recording[name].to_dataset() for name in ("train", "validation"))
        cells, interval = train.sizes["cell"], train.attrs["frame_interval"]
        bases = [
            orthonormal(raised_cosines(_bins(length, interval), number))
            for length, number in (
                (c.history_length, c.history_functions),
                (c.coupling_length if cells > 1 else 0.0, c.coupling_functions),
            )
        ]
        lags = max(c.lags, *(len(basis) + 1 for basis in bases))
        mean = np.nanmean(_counts(train), (0, 1))
        standard = _Standard(train)
        seen, held_out = (
            _Regressors(split, lags, bases, mean, standard) for split in (train, validation)
        )
        _check(seen, train, lags)
        models = [self._model_of(seen.counts(cell)) for cell in range(cells)]
        found = averages(train, c.lags)
        spaces = {
            cell: filter_spaces(found, cell, side=c.side, basis="cosine")[0]
            for cell in range(cells)
            if seen.counts(cell).any()
        }
        fits = [_silent(model, seen) for model in models]
        stimuli = [split["stimulus"] for split in (train, validation)]
        images = {cell: (space.region, space.images) for cell, space in spaces.items()}
        for cell, projected in project_cells(stimuli, found.centre, images):

            def tell(step: int, cell: int = cell) -> None:
                progress(cell + step / (step + 10), cells, f"cell {cell + 1} of {cells}")

            fits[cell] = fit_glm(
                spaces[cell],
                seen.data(cell, projected[0]),
                held_out.data(cell, projected[1]),
                models[cell],
                sizes=seen.sizes(),
                rank=c.rank,
                most=c.iterations,
                tell=tell,
            )
        kernel = np.zeros((cells, c.lags, *found.centre.shape))
        for cell, space in spaces.items():
            kernel[cell] = space.kernel(fits[cell].factors, found.centre.shape)
        weights = [seen.split(fit.weights) for fit in fits]
        self.parts = self.field = self._labelled(
            train, kernel, weights, bases, standard, found.centre
        ).assign(
            mean_response=("cell", mean),
            largest_count=("cell", [model.largest or np.nan for model in models]),
        )
        curves = _curves(fits, train["cell"])
        return curves

    def _model_of(self, count: Array) -> CountModel:
        """The count model of a cell with these counts."""
        largest = int(count.max(initial=0)) if self.config.limit else 0
        if not 0 < largest <= MOST_LIMITED or (count != np.rint(count)).any():
            largest = 0
        if self.config.likelihood == "bernoulli":
            largest = 1
        return CountModel(self.config.nonlinearity, largest or None)

    def _labelled(
        self,
        train: xr.Dataset,
        kernel: Array,
        weights: "list[_Weights]",
        bases: list[Array],
        standard: "_Standard",
        centre: Array,
    ) -> xr.Dataset:
        """The parameters with their coordinates."""
        field, interval = coordinates_of(train, self.config.lags), train.attrs["frame_interval"]
        cells = len(weights)
        offset = np.array([one.offset for one in weights])
        offset -= kernel.reshape(cells, self.config.lags, -1).sum(1) @ centre.ravel()
        dims = ("cell", "lag", *train["stimulus"].dims[1:])
        variables: dict[str, Any] = {"kernel": (dims, kernel.astype(np.float32))}
        coords: dict[str, Any] = {}
        for name, basis in zip(("history", "coupling"), bases, strict=True):
            if basis.size:
                lag = np.arange(1, len(basis) + 1)
                coords[f"{name}_lag"] = (f"{name}_lag", lag, {"units": "frame"})
                coords[f"{name}_lag_time"] = (f"{name}_lag", lag * interval, {"units": "s"})
        if bases[0].size:
            filters = np.stack([bases[0] @ one.history for one in weights])
            variables["history"] = (("cell", "history_lag"), filters)
        if bases[1].size:
            between = np.zeros((cells, cells, len(bases[1])))
            for cell, one in enumerate(weights):
                between[cell, np.arange(cells) != cell] = one.coupling @ bases[1].T
            variables["coupling"] = (("cell", "from_cell", "coupling_lag"), between)
            coords["from_cell"] = ("from_cell", train["cell"].values)
        if standard.names:
            slopes = np.stack([one.covariates for one in weights]) / standard.spread
            offset -= slopes @ standard.mean
            variables["covariate_weight"] = (("cell", "covariate"), slopes)
        variables["offset"] = ("cell", offset)
        parts = field.assign(variables).assign_coords(coords)
        return parts.assign_attrs(
            nonlinearity=self.config.nonlinearity, likelihood=self.config.likelihood
        )

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        spikes = bool({"history", "coupling"} & set(self.parts))
        self._require(split, *["response"] * spikes, *["covariates"] * self._has_covariates)
        drive = self._drive(split)
        if spikes:
            drive = self._with_history(drive, split)
            if "repeat" not in split["response"].dims:
                drive = drive[0]
        models = self._models()
        return np.stack([m.mean(drive[..., cell]) for cell, m in enumerate(models)], -1)

    def simulate(self, split: Shown, repeats: int = 1, seed: int = 0) -> xr.DataArray:
        """Draws spikes whose history and coupling are the model's own spikes.

        A simulation begins without spikes at the first frame of each segment, where the stimulus
        before is taken as 0. Frames without a full history are not returned. Rates are limited to
        ten times the cell's largest count in training (without `limit`, a hundred times its mean);
        if they are often higher, there is a warning.

        Args:
            split: as for `predict`; responses are not used.
            repeats: the number of simulated repeats.
            seed: of the random draws.

        Returns:
            (repeat, frame, cell) spikes per bin, NaN in frames without a full history.

        Raises:
            RecordingError, UserError: as by `predict`.
        """
        split = self.prepare(split).drop_dims("repeat", errors="ignore")
        models, largest = self._models(), self.parts["largest_count"].values
        usual = np.maximum(10 * self.parts["mean_response"].values, 1)
        ceiling = CEILING * np.where(np.isnan(largest), usual, largest)
        counts, exceeded = simulate_with_feedback(
            self._drive(split),
            self._filters(),
            segments(split),
            repeats=repeats,
            seed=seed,
            most=np.array([np.inf if m.largest is None else m.largest for m in models]),
            ceiling=ceiling,
            nonlinearity=self.config.nonlinearity,
        )
        fraction = exceeded / max(repeats * split.sizes["frame"], 1)
        if (fraction > TOO_OFTEN).any():
            worst = int(fraction.argmax())
            logger.warning(
                "the simulated spikes are unstable: the rate of cell %s is above %g spikes per bin "
                "in %.0f %% of the bins; its own or the other cells' spikes excite it too much",
                self.field["cell"].values[worst], ceiling[worst], 100 * fraction[worst],
            )  # fmt: skip
        dims = ("repeat", "frame", "cell")
        simulated = self.label(counts.astype(float), split, dims, name="simulation")
        simulated.attrs["units"] = SPIKES_PER_BIN
        return simulated.assign_coords(cell=self.field["cell"].variable)

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[Array, NDArray[np.float32]]:
        if layer is not None:
            self.check_layer(layer)
        split, cells = self.prepare(split), self.field.sizes["cell"]
        weight = self.broadcast_weight(weight, split, (split.sizes["frame"], cells))
        drive, pieces = self._drive(split)[None], segments(split)
        if "response" in split:
            drive = self._with_history(drive[0], split)
        models = self._models()
        mean, slope = (
            np.stack([function(one, drive[..., cell]) for cell, one in enumerate(models)], -1)
            for function in (CountModel.mean, CountModel.slope_of_mean)
        )
        by_drive = weight * slope.mean(0)
        gradient = spread_over_history(by_drive, self.parts["kernel"].values, pieces)
        return (weight * mean.mean(0)).sum(1), gradient

    def _with_history(self, drive: Array, split: xr.Dataset) -> Array:
        """The drive (repeat, frame, cell) of the stimulus and of the spikes before each frame."""
        count = _counts(split)
        if count.shape[-1] != drive.shape[-1]:
            raise UserError(
                f"'response' has {count.shape[-1]} cells (dimension 'cell') and the GLM was "
                f"fitted to {drive.shape[-1]}; give the responses of these cells"
            )
        count = np.where(np.isnan(count), self.parts["mean_response"].values, count)
        filters, pieces = self._filters(), segments(split)
        return np.stack([drive + history_drive(one, filters, pieces) for one in count])

    @property
    def _has_covariates(self) -> bool:
        return "covariate_weight" in self.parts

    @staticmethod
    def _require(split: xr.Dataset, *names: str) -> None:
        missing = [f"'{name}'" for name in names if name not in split]
        if missing:
            raise UserError(
                "the GLM predicts a frame from the stimulus, the spikes before it and any "
                f"covariates, and there is no {' and no '.join(missing)}; give a whole split"
            )

    def _models(self) -> list[CountModel]:
        largest = self.parts["largest_count"].values
        return [
            CountModel(self.config.nonlinearity, None if np.isnan(k) else int(k)) for k in largest
        ]

    def _filters(self) -> Array:
        """History and coupling filters (cell, source, lag), 0 where there are none."""
        parts, cells = self.parts, self.parts.sizes["cell"]
        sizes = [parts.sizes.get(f"{name}_lag", 0) for name in ("history", "coupling")]
        filters = np.zeros((cells, cells, max(sizes)))
        if "coupling" in parts:
            filters[..., : sizes[1]] = parts["coupling"].values
        if "history" in parts:
            filters[np.arange(cells), np.arange(cells), : sizes[0]] = parts["history"].values
        return filters

    def _drive(self, split: xr.Dataset) -> Array:
        """The drive (frame, cell) of stimulus, covariates and offset."""
        drive = filter_stimulus(split["stimulus"], self.parts["kernel"].values, segments(split))
        drive += self.parts["offset"].values
        if self._has_covariates:
            self._require(split, "covariates")
            drive += split["covariates"].values @ self.parts["covariate_weight"].values.T
        return drive

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        return self.parts

    def state(self) -> xr.Dataset:
        return self.parameters()

    def restore(self, state: xr.Dataset) -> None:
        self.parts = self.field = state


def _bins(length: float, interval: float) -> int:
    """The number of frames of a length in ms, rounded up."""
    return ceil(length / 1000 / interval - 1e-6)


def _counts(split: xr.Dataset) -> Array:
    """The responses (repeat, frame, cell), NaN where they are missing."""
    response = split["response"]
    if "cell" not in response.dims:
        response = response.expand_dims("cell")
    counts = response.transpose(..., "frame", "cell").values.astype(float)
    return counts if counts.ndim == 3 else counts[None]


class _Standard:
    """Mean and standard deviation of the covariates in the training frames."""

    def __init__(self, train: xr.Dataset):
        self.names = [str(n) for n in train["covariate"].values] if "covariates" in train else []
        if self.names:
            values = train["covariates"].values.astype(float)
            self.mean, spread = values.mean(0), values.std(0)
            self.spread = np.where(spread > 0, spread, 1.0)

    def of(self, split: xr.Dataset) -> NDArray[np.float32]:
        if not self.names:
            return np.empty((split.sizes["frame"], 0), np.float32)
        standard = (split["covariates"].values - self.mean) / self.spread
        return np.asarray(standard, np.float32)


class _Regressors:
    """Of one split, the counts and all regressors except for the stimulus.

    Attributes:
        count: (repeat, frame, cell).
        full: (frame,) whether a frame has a full history.
        history, coupling: (repeat, frame, cell, function).
        covariates: (frame, covariate).
    """

    def __init__(
        self, split: xr.Dataset, lags: int, bases: list[Array], mean: Array, standard: _Standard
    ):
        self.count = _counts(split)
        self.pieces = segments(split)
        self.full = full_history(split["segment"], lags)
        filled = np.where(np.isnan(self.count), mean, self.count)
        self.history, self.coupling = (
            np.stack([history_regressors(one, basis, self.pieces) for one in filled])
            for basis in bases
        )
        self.covariates = standard.of(split)

    def used(self, cell: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The repeats and frames in which a cell has a response and a full history."""
        repeat, frame = np.nonzero(np.isfinite(self.count[:, :, cell]) & self.full)
        return repeat, frame

    def counts(self, cell: int) -> Array:
        """The counts in these frames."""
        counts: Array = self.count[*self.used(cell), cell]
        return counts

    def data(self, cell: int, projected: NDArray[np.float32]) -> GLMData:
        """The data of the fit of a cell, given the stimulus in the basis of its filter."""
        repeat, frame = self.used(cell)
        others = np.arange(self.count.shape[2]) != cell
        columns = [
            self.history[repeat, frame, cell],
            *self.coupling[repeat, frame][:, others].transpose(1, 0, 2),
            self.covariates[frame],
            np.ones((len(frame), 1), np.float32),
        ]
        regressors = np.concatenate(columns, axis=1)
        return GLMData(projected, self.pieces, frame, self.counts(cell), regressors)

    def sizes(self) -> list[int]:
        """The numbers of weights of the history, of each coupling and of each covariate."""
        others, covariates = self.count.shape[2] - 1, self.covariates.shape[1]
        sizes = [self.history.shape[3], *[self.coupling.shape[3]] * others, *[1] * covariates]
        return [size for size in sizes if size]

    def split(self, weights: Array) -> "_Weights":
        """The weights of the regressors of a cell."""
        own, covariates = self.history.shape[3], self.covariates.shape[1]
        end = len(weights) - 1 - covariates
        coupling = weights[own:end].reshape(-1, max(self.coupling.shape[3], 1))
        return _Weights(weights[:own], coupling, weights[end:-1], float(weights[-1]))


@dataclass(frozen=True)
class _Weights:
    """Weights of history (function,), coupling (other cell, function) and covariates."""

    history: Array
    coupling: Array
    covariates: Array
    offset: float


def _check(seen: _Regressors, train: xr.Dataset, lags: int) -> None:
    if np.nanmin(seen.count, initial=0) < 0:
        raise UserError(
            "the responses are negative in some frames, and the GLM is a model of spike counts; "
            "choose a model with loss: mse"
        )
    if not full_history(train["segment"], lags).any():
        raise UserError(
            f"no segment of 'train' has {lags} frames, as many as the longest history of the "
            "stimulus or the spikes; use fewer lags, a shorter history_length and a shorter "
            "coupling_length"
        )
    for cell, name in enumerate(train["cell"].values):
        if not len(seen.used(cell)[0]):
            raise UserError(
                f"cell {name} has no response in a frame of 'train' with {lags} frames of history; "
                "leave it out, or use fewer lags or a shorter history"
            )


def _silent(model: CountModel, seen: _Regressors) -> GLMFit:
    """The fit of a cell without spikes, which has the rate 0."""
    weights = np.zeros(sum(seen.sizes()) + 1)
    weights[-1] = model.drive(0.0)
    return GLMFit(np.zeros((1, 1)), weights, [0.0], [0.0], [0.0], converged=True)


def _warning(fit: GLMFit) -> str:
    if fit.converged:
        return ""
    return (
        f"the fit has not converged after {len(fit.decrement)} Newton steps: a further step would "
        f"gain {fit.decrement[-1]:.2g} bits per spike; raise iterations"
    )


def _curves(fits: list[GLMFit], cell: xr.DataArray) -> xr.Dataset:
    """The training curves, of which those of a cell with fewer steps end with its last value."""
    steps = max(len(fit.decrement) for fit in fits)

    def of(name: str) -> Array:
        curves = [getattr(fit, name) for fit in fits]
        return np.array([[*curve, *[curve[-1]] * (steps - len(curve))] for curve in curves]).T

    validation = of("validation_loss")
    known = np.isfinite(validation).all(0)
    return xr.Dataset(
        {
            "train_loss": ("check", of("train_loss").mean(1), {"units": "nats per bin"}),
            "validation_loss": (
                "check",
                validation[:, known].mean(1) if known.any() else validation[:, 0],
                {"units": "nats per bin"},
            ),
            "decrement": (("check", "cell"), of("decrement"), {"units": "bits per spike"}),
            "converged": ("cell", np.array([fit.converged for fit in fits])),
            "warning": ("cell", np.array([_warning(fit) for fit in fits])),
        },
        coords={
            "check": np.arange(steps),
            "step": ("check", np.arange(steps)),
            "cell": cell.variable,
        },
    )
