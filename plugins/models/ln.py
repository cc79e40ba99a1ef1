"""The linear-nonlinear model, fitted to convergence with a smooth prior."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

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
    as_response,
    coordinates_of,
    full_history,
    mean_response,
    require_uncentred,
    segments,
    silent,
    space_sizes,
)
from retinakit.regression import (
    FIRST_TOLERANCE,
    TOLERANCE,
    Drive,
    Exponential,
    FilterFit,
    FilterSpace,
    Fitted,
    Fixed,
    Identity,
    MonotoneSpline,
    Nonlinearity,
    Regressors,
    Softplus,
    averages,
    filter_spaces,
    filter_stimulus,
    fit_in_space,
    project_cells,
    spread_over_history,
)

Array = NDArray[np.float64]

KNOTS = 8
"""Number of knots of a nonlinearity that is a spline."""

SHOWN = 20_000
"""Number of training frames whose drives are the range of the curve of the nonlinearity."""

MOST_PRODUCTS = 4
"""Largest rank that is tried."""

POINTS = {"description": "each point is one of the curve over the drives in training"}

CLEAR = 2.0
"""A higher rank must improve the validation loss by this number of standard errors."""

PARAMETRIC: dict[str, Callable[[], Nonlinearity]] = {
    "softplus": Softplus,
    "exponential": Exponential,
    "linear": Identity,
}


class LNConfig(Config):
    """Options of the LN model."""

    lags: int = Field(
        20, ge=1, description="Number of frames of history, including the current frame."
    )
    rank: int | None = Field(
        None,
        ge=0,
        description="The filter is a sum of this many products of a spatial map and a temporal "
        "filter; 0: a full filter; null: the smallest rank that predicts the validation frames "
        "as well as higher ones.",
    )
    nonlinearity: Literal["softplus", "exponential", "spline", "linear"] = Field(
        "softplus",
        description="Output nonlinearity of the filtered stimulus x: gain · log(1 + exp(x)), "
        "exp(x), a monotone spline that is learned, or x itself (with loss: mse).",
    )
    prior: Literal["smooth", "spline", "independent"] = Field(
        "smooth",
        description="'smooth': automatic smoothness determination, a Gaussian prior whose "
        "lengths in space and time and strength have the largest evidence; 'spline': filters of "
        "cubic splines with a ridge penalty; 'independent': a ridge penalty. The strength has the "
        "largest evidence.",
    )
    length_factors: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0, 0.6],
        min_length=1,
        description="Factors of the most probable lengths of smoothness, or of the distance of "
        "the knots, that are tried in this order until the validation loss increases.",
    )
    side: int = Field(
        41,
        ge=1,
        description="Largest side, in checks, of the square around the receptive field in which "
        "the filter is fitted; it is 0 outside.",
    )
    target: Literal["response", "rate"] = Field(
        "response", description="Target of the fit: the recorded response or the known rate."
    )
    loss: Literal["poisson", "mse"] = Field(
        "poisson", description="Loss: Poisson or mean squared error."
    )


@dataclass
class _Cell:
    """What is fitted for one cell, and the validation losses of what was tried."""

    space: FilterSpace
    fitted: Fitted
    nonlinearity: Nonlinearity
    factor: float
    losses: Array
    """Of each validation frame."""
    start: Drive
    """The fit before the nonlinearity is a spline."""


class LN(Model):
    """A linear filter and a static nonlinearity for each cell.

    The rate of a cell in spikes per bin is f(Σ_{lag,y,x} filter · stimulus + offset). The filter is
    a sum of `rank` products of a spatial map and a temporal filter, within a square around the
    receptive field. It has a Gaussian prior of smooth filters, whose strength, lengths and square
    have the largest evidence for the response-weighted average of the stimulus (Sahani & Linden
    2003); shorter lengths and higher ranks are tried on the validation frames. The fit converges:
    the curves give the expected gain of a further step, in bits per spike. Cells are fitted
    independently.

    `parameters()` has `kernel (cell, lag, [channel,] y, x)`, `offset (cell)`, `gain (cell)` for the
    softplus, and the nonlinearity as a curve, `nonlinearity (cell, point)` at `drive (cell,
    point)`.

    Raises:
        RecordingError: by `fit`, if the recording does not keep its contract, or its responses are
            centred on 0 and the loss is Poisson.
        UserError: by `fit`, if the nonlinearity is linear and the loss Poisson, or a spline and
            some responses are negative.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = LN.with_options(lags=5)
        >>> curves = model.fit(recording)
        >>> bool(curves["converged"].all())
        True
        >>> dict(model.predict(recording["test"].to_dataset()).sizes)
        {'frame': 500, 'cell': 2}
    """

    Config = LNConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 5, "rank": 1, "length_factors": [1.0]}

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
        train, held_out = (
            as_response(recording[name].to_dataset(), c.target) for name in ("train", "validation")
        )
        if c.loss == "poisson":
            if c.nonlinearity == "linear":
                raise UserError(
                    "nonlinearity is 'linear', which predicts negative rates, and the loss is "
                    "Poisson; set loss: mse, or choose another nonlinearity"
                )
            require_uncentred(train["response"])
        if c.nonlinearity == "spline" and bool((train["response"] < 0).any()):
            raise UserError(
                "nonlinearity is 'spline', which predicts no negative response, and some responses "
                "are negative; set nonlinearity: linear"
            )
        field = coordinates_of(train, c.lags)
        of = averages(train, c.lags)
        side, basis = c.side, {"smooth": "cosine", "independent": "pixel"}.get(c.prior, c.prior)
        factors = c.length_factors if c.prior != "independent" else [1.0]
        number = field.sizes["cell"]
        spaces = [
            filter_spaces(of, cell, side=side, basis=basis, factors=factors)
            for cell in range(number)
        ]
        stimuli = [split["stimulus"] for split in (train, held_out)]
        responses = [_Responses(split, c.lags) for split in (train, held_out)]
        losses = np.full((number, len(factors)), np.nan)
        best: dict[int, _Cell] = {}
        undecided = list(range(number))
        indices = list(range(len(factors)))
        # Except for splines, one projection serves all factors.
        for group in [[index] for index in indices] if c.prior == "spline" else [indices]:
            tried, undecided = undecided, []
            widest = {
                cell: max((spaces[cell][index] for index in group), key=lambda s: s.images.number)
                for cell in tried
            }
            bases = {cell: (space.region, space.images) for cell, space in widest.items()}
            for done, (cell, seen) in enumerate(project_cells(stimuli, of.centre, bases), 1):
                for index in group:
                    space = spaces[cell][index]
                    data = [
                        one.of(cell, s[:, : space.images.number])
                        for one, s in zip(responses, seen, strict=True)
                    ]
                    before = best.get(cell)
                    found = self._fit_cell(space, factors[index], before, *data)
                    losses[cell, index] = found.losses.mean() if len(found.losses) else np.nan
                    if before and not _clearly_better(found.losses, before.losses):
                        break
                    best[cell] = found
                    if not len(found.losses):
                        break
                else:
                    undecided.append(cell)
                progress(done, len(tried), "LN models")
        cells = [best[cell] for cell in range(number)]
        self._store(field, cells, of.centre, train)
        return self._curves(cells, losses, factors, field)

    def _fit_cell(
        self,
        space: FilterSpace,
        factor: float,
        before: _Cell | None,
        train: Regressors,
        held_out: Regressors,
    ) -> _Cell:
        """The fit of a cell in one space of filters, after that with a larger length `before`."""
        c = self.config
        # The filter of a spline is fitted with a softplus first.
        nonlinearity = PARAMETRIC.get(c.nonlinearity, Softplus)()
        rank, start = 1 if c.rank is None else c.rank, None
        if before:
            # The rank is chosen with the first factor.
            rank = len(before.start.courses) if c.rank is None else c.rank
            # A full filter has a map for each temporal function, whose number differs.
            if c.prior != "spline" and rank:
                start = before.start.widened(*space.start.shape)
        problem = self._problem(space, nonlinearity, train, rank)
        search = c.rank is None and not before and held_out.used.any()
        if search:
            fitted = self._search_rank(space, nonlinearity, train, held_out)
        else:
            fitted = fit_in_space(problem, space, rank, start)
        losses = self._losses(space, fitted, nonlinearity, held_out)
        found = _Cell(space, fitted, nonlinearity, factor, losses, fitted.drive)
        if c.nonlinearity == "spline":
            found = self._with_spline(found, train)
            losses = self._losses(space, found.fitted, found.nonlinearity, held_out)
            found = replace(found, losses=losses)
        return found

    def _problem(
        self, space: FilterSpace, nonlinearity: Nonlinearity, data: Regressors, rank: int
    ) -> FilterFit:
        likelihood: Literal["poisson", "gaussian"] = (
            "poisson" if self.config.loss == "poisson" else "gaussian"
        )
        return FilterFit(data, space.courses, nonlinearity, likelihood, fixed_courses=rank == 0)

    def _losses(
        self, space: FilterSpace, fitted: Fitted, nonlinearity: Nonlinearity, data: Regressors
    ) -> Array:
        """The loss of each frame (frame,)."""
        problem = self._problem(space, nonlinearity, data, 1)
        drive = problem.drive(fitted.drive)[data.used]
        rate, _, _ = nonlinearity(drive, fitted.drive.shape)
        return problem.losses(rate)

    def _search_rank(
        self,
        space: FilterSpace,
        nonlinearity: Nonlinearity,
        train: Regressors,
        held_out: Regressors,
    ) -> Fitted:
        """The fit of the smallest rank that predicts the validation frames as well as higher ones.

        A rank that predicts them no better after a fit to the first training frames is not fitted
        to all of them.
        """
        best: tuple[Fitted, Array, Array] | None = None
        for rank in range(1, min(MOST_PRODUCTS, *space.start.shape) + 1):
            problem = self._problem(space, nonlinearity, train, rank)
            part = problem.first_frames()
            tolerance = TOLERANCE if part is problem else FIRST_TOLERANCE
            fitted = fit_in_space(part, space, rank, tolerance=tolerance)
            first = self._losses(space, fitted, nonlinearity, held_out)
            if best and first.sum() >= best[1].sum():
                break
            losses = first
            if part is not problem:
                fitted = fit_in_space(problem, space, rank, fitted.drive)
                losses = self._losses(space, fitted, nonlinearity, held_out)
            if best and not _clearly_better(losses, best[2]):
                break
            best = fitted, first, losses
        assert best is not None
        return best[0]

    def _with_spline(self, best: _Cell, data: Regressors) -> _Cell:
        """The same cell with a spline, of which the filter is fitted once more."""
        fitted, rank = best.fitted, len(best.fitted.drive.courses)
        rank = 0 if self.config.rank == 0 else rank
        problem = self._problem(best.space, best.nonlinearity, data, rank)
        for again in (True, False):
            drive = problem.drive(fitted.drive)[data.used]
            spline, shape = MonotoneSpline.fitted(
                drive, data.response[data.used], KNOTS, problem.likelihood
            )
            if again:
                problem = replace(problem, nonlinearity=Fixed(spline, shape))
                start = replace(fitted.drive, shape=np.zeros(0))
                fitted = fit_in_space(problem, best.space, rank, start=start)
        drive_with_shape = replace(fitted.drive, shape=shape)
        return replace(best, fitted=replace(fitted, drive=drive_with_shape), nonlinearity=spline)

    def _store(
        self, field: xr.Dataset, cells: Sequence[_Cell], centre: Array, train: xr.Dataset
    ) -> None:
        """Sets the parameters from the fitted cells."""
        space = space_sizes(field)
        kernel = np.zeros((len(cells), self.lags, *space.values()))
        offset = np.zeros(len(cells))
        for index, cell in enumerate(cells):
            drive = cell.fitted.drive
            kernel[index] = cell.space.kernel(drive.courses.T @ drive.maps, centre.shape)
            offset[index] = drive.offset - float((kernel[index] * centre).sum())
        self.field = field
        self.parts = xr.Dataset(
            {
                "kernel": (("cell", "lag", *space), kernel.astype(np.float32)),
                "offset": ("cell", offset),
                "shape": (
                    ("cell", "shape_parameter"),
                    np.array([cell.fitted.drive.shape for cell in cells]),
                ),
            }
        )
        if self.config.nonlinearity == "spline":
            knots = [cell.nonlinearity.knots for cell in cells]  # type: ignore[attr-defined]
            self.parts["knot"] = (("cell", "knot_number"), np.array(knots))
        drives = self._drives(train.isel(frame=slice(0, SHOWN)))
        curve = np.linspace(drives.min(0), drives.max(0), 50)
        self.parts["drive"] = (("cell", "point"), curve.T)

    def _curves(
        self, cells: Sequence[_Cell], losses: Array, factors: Sequence[float], field: xr.Dataset
    ) -> xr.Dataset:
        warnings = [
            ""
            if cell.fitted.converged
            else "the fit has not converged: a further step would gain "
            f"{cell.fitted.decrement:.1g} bits per spike"
            for cell in cells
        ]
        tried = np.isfinite(losses)
        mean = np.where(tried, losses, 0).sum(0) / np.maximum(tried.sum(0), 1)
        return xr.Dataset(
            {
                "validation_loss": ("check", np.where(tried.any(0), mean, np.nan)),
                "cell_validation_loss": (("cell", "check"), losses),
                "chosen_length_factor": ("cell", [cell.factor for cell in cells]),
                "rank": ("cell", [len(cell.fitted.drive.courses) for cell in cells]),
                "converged": ("cell", [cell.fitted.converged for cell in cells]),
                "expected_gain": (
                    "cell",
                    [cell.fitted.decrement for cell in cells],
                    {"units": "bits per spike"},
                ),
                "warning": ("cell", warnings),
                "steps": ("cell", [cell.fitted.iterations for cell in cells]),
            },
            coords={
                "check": np.arange(len(factors)),
                "length_factor": ("check", list(factors)),
                "cell": field["cell"].variable,
            },
        )

    def _drives(self, split: xr.Dataset) -> Array:
        """The drive of each cell (frame, cell)."""
        drives = filter_stimulus(split["stimulus"], self.parts["kernel"].values, segments(split))
        drives += self.parts["offset"].values
        return drives

    def _rates(self, drives: Array, cells: Sequence[int] | None = None) -> tuple[Array, Array]:
        """The rates (frame, cell) of drives of some cells, and their derivatives by the drive."""
        rates, slopes = np.empty_like(drives), np.empty_like(drives)
        kind = self.config.nonlinearity
        for column, cell in enumerate(range(drives.shape[1]) if cells is None else cells):
            shape = self.parts["shape"].values[cell]
            nonlinearity = (
                MonotoneSpline(self.parts["knot"].values[cell])
                if kind == "spline"
                else PARAMETRIC[kind]()
            )
            rates[:, column], slopes[:, column], _ = nonlinearity(drives[:, column], shape)
        return rates, slopes

    def respond(self, split: xr.Dataset) -> Array:
        return self._rates(self._drives(split))[0]

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[Array, NDArray[np.float32]]:
        if layer is not None:
            self.check_layer(layer)
        split, cells = self.prepare(split), self.field.sizes["cell"]
        weight = self.broadcast_weight(weight, split, (split.sizes["frame"], cells))
        used = np.flatnonzero(weight.any(0))
        parts, pieces, weight = self.parts.isel(cell=used), segments(split), weight[:, used]
        kernel = parts["kernel"].values
        drives = filter_stimulus(split["stimulus"], kernel, pieces) + parts["offset"].values
        rates, slopes = self._rates(drives, used.tolist())
        return (weight * rates).sum(1), spread_over_history(weight * slopes, kernel, pieces)

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        curve = self._rates(self.parts["drive"].values.T)[0].T
        variables: dict[str, Any] = {
            "kernel": self.parts["kernel"],
            "offset": self.parts["offset"],
            "drive": self.parts["drive"].assign_attrs(POINTS),
            "nonlinearity": (("cell", "point"), curve, POINTS),
        }
        if self.config.nonlinearity == "softplus":
            variables["gain"] = ("cell", np.exp(self.parts["shape"].values[:, 0]))
        return self.field.assign(variables)

    def state(self) -> xr.Dataset:
        self.check_fitted()
        return self.field.merge(self.parts)

    def restore(self, state: xr.Dataset) -> None:
        self.parts = state.drop_vars(list(state.coords))
        self.field = state.drop_vars(list(state.data_vars))


def _clearly_better(losses: Array, than: Array) -> bool:
    """Whether losses of the same frames are lower, by `CLEAR` standard errors of the difference."""
    gain = than - losses
    return float(gain.sum()) > CLEAR * float(gain.std()) * np.sqrt(len(gain)) and len(gain) > 0


class _Responses:
    """The responses of a split, 0 where they are not used, and where they are used."""

    def __init__(self, split: xr.Dataset, lags: int):
        response = np.asarray(mean_response(split), float)
        self.used = full_history(split["segment"], lags)[:, None] & np.isfinite(response)
        self.values = np.where(self.used, response, 0)

    def of(self, cell: int, projected: NDArray[np.float32]) -> Regressors:
        nothing = np.empty((len(projected), 0), np.float32)
        used = np.ascontiguousarray(self.used[:, cell])
        return Regressors(projected, np.ascontiguousarray(self.values[:, cell]), used, nothing)
