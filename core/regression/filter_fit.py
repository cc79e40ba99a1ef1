"""Fit of low-rank stimulus filters and further regressors by Fisher scoring."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import xlogy

from retinakit.regression.filter_space import FilterSpace
from retinakit.regression.nonlinearity import Nonlinearity

Array = NDArray[np.float64]

RUN = 512
"""The Hessian is a mean over runs of this number of frames."""

MEMORY = 12
"""Number of steps that correct the expected Hessian."""

REFRESH = 15
"""The expected Hessian is computed again after this number of steps."""

ENOUGH = 15
"""Number of frames per parameter from which the Hessian is computed."""

FIRST = 60_000
"""The number of frames of the first steps, whose result is the start of the steps on all frames."""

TOLERANCE = 1e-4
"""A fit has converged if a further Newton step would gain less than this, in bits per spike."""

FIRST_TOLERANCE = 1e-3
"""The tolerance of a fit whose result is the start of another one, in bits per spike."""

OFFSET_SPREAD = 4.0
"""Standard deviation of the prior of the offset about its start. It keeps the offset finite for
data that are best fitted by the exponential limit of a softplus."""


@dataclass(frozen=True)
class Regressors:
    """The data of the fit of one cell.

    Attributes:
        projected: (frame, column) the stimulus in the spatial basis, in single precision.
        response: (frame,) the responses, 0 where they are not used.
        used: (frame,) whether a frame has a full history and a response.
        extra: (frame, regressor) further regressors, such as the history of spikes.

    Example:
        >>> none = np.empty((5, 0), np.float32)
        >>> data = Regressors(np.ones((5, 1), np.float32), np.ones(5), np.ones(5, bool), none)
    """

    projected: NDArray[np.float32]
    response: Array
    used: NDArray[np.bool_]
    extra: NDArray[np.float32]


@dataclass(frozen=True)
class Penalty:
    """The Gaussian priors, as relative precisions.

    The filter, as a matrix W of its coefficients (temporal, column) in the two bases, has the
    penalty strength / 2 · Σ temporal_i spatial_j W_ij².

    Attributes:
        temporal: (temporal,) precisions along time.
        spatial: (column,) precisions of the columns of `Regressors.projected`.
        strength: of the prior of the filter.
        extra: (regressor, regressor) the precision matrix of the further coefficients.

    Example:
        >>> ridge = Penalty(np.ones(3), np.ones(4), 2.0, np.zeros((0, 0)))
    """

    temporal: Array
    spatial: Array
    strength: float
    extra: Array


@dataclass(frozen=True)
class Drive:
    """The fitted parameters: drive = Σ_r courses_r * (projected @ maps_r) + extra @ weights + b.

    Attributes:
        courses: (rank, temporal) coefficients of the temporal filters in the temporal basis.
        maps: (rank, column) coefficients of the spatial filters.
        weights: (regressor,) of the further regressors.
        offset: b.
        shape: the parameters of the nonlinearity.

    Example:
        >>> none = np.zeros(0)
        >>> drive = Drive(2 * np.eye(2)[:1], np.eye(3)[:1], none, offset=-1.0, shape=none)
        >>> drive.vector().tolist()
        [2.0, 0.0, 1.0, 0.0, 0.0, -1.0]
    """

    courses: Array
    maps: Array
    weights: Array
    offset: float
    shape: Array

    def vector(self) -> Array:
        parts = (self.courses, self.maps, self.weights, [self.offset], self.shape)
        return np.concatenate([np.ravel(part) for part in parts])

    def moved(self, step: Array) -> "Drive":
        """These parameters plus a step in the order of `vector`."""
        before = (self.courses, self.maps, self.weights, np.array([self.offset]), self.shape)
        ends = np.cumsum([part.size for part in before])[:-1]
        steps = np.split(step, ends)
        after = [part + s.reshape(part.shape) for part, s in zip(before, steps, strict=True)]
        courses, maps, weights, offset, shape = after
        return Drive(courses, maps, weights, float(offset[0]), shape)

    def widened(self, temporal: int, columns: int) -> "Drive":
        """These parameters in larger or smaller bases, which begin with the same functions."""
        courses, maps = (
            np.pad(part[:, :size], ((0, 0), (0, max(0, size - part.shape[1]))))
            for part, size in ((self.courses, temporal), (self.maps, columns))
        )
        return replace(self, courses=courses, maps=maps)

    def balanced(self) -> "Drive":
        """The same filter as orthogonal products, course and map of each having equal norms."""
        q_time, r_time = np.linalg.qr(self.courses.T)
        q_space, r_space = np.linalg.qr(self.maps.T)
        u, s, v = np.linalg.svd(r_time @ r_space.T)
        size = len(self.courses)
        root = np.zeros(size)
        root[: len(s)] = np.sqrt(s[:size])
        courses, maps = np.zeros_like(self.courses), np.zeros_like(self.maps)
        kept = len(s)
        courses[:kept] = ((q_time @ u)[:, :kept] * root[:kept]).T
        maps[:kept] = ((q_space @ v.T)[:, :kept] * root[:kept]).T
        return replace(self, courses=courses, maps=maps)


@dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
        drive: the parameters.
        converged: whether the expected gain of a further step is below the tolerance.
        decrement: the expected gain of a further step, in bits per spike.
        iterations: the number of steps.

    Example:
        >>> none = np.zeros(0)
        >>> drive = Drive(np.zeros((1, 1)), np.zeros((1, 1)), none, 0.0, none)
        >>> Fitted(drive, converged=True, decrement=1e-6, iterations=4).converged
        True
    """

    drive: Drive
    converged: bool
    decrement: float
    iterations: int


Parts = tuple[Array, Array, Array]

Likelihood = Literal["poisson", "gaussian"]


@dataclass
class FilterFit:
    """Fits rate = f(filter · stimulus + extra · weights + offset).

    The filter is a sum of products of a temporal and a spatial filter. The loss is minimised by
    L-BFGS with exact gradients. Its initial matrix is the expected Hessian of all parameters from
    a subset of the frames, so that the steps are those of Fisher scoring with corrections.

    Args:
        data: of the fit.
        basis: (lag, temporal) the temporal basis, as columns.
        nonlinearity: f.
        likelihood: of the responses, with the mean `rate`; "gaussian" has the variance of the
            response.
        fixed_courses: whether the temporal filters keep their initial values; the problem is then
            convex for an exponential.

    Example:
        >>> from retinakit.regression import Exponential
        >>> none, no_regressor = np.zeros(0), np.empty((5, 0), np.float32)
        >>> counts, every = np.array([0.0, 1, 1, 2, 1]), np.ones(5, bool)
        >>> data = Regressors(np.zeros((5, 1), np.float32), counts, every, no_regressor)
        >>> problem = FilterFit(data, np.eye(1), Exponential())
        >>> start = Drive(np.ones((1, 1)), np.zeros((1, 1)), none, 0.0, none)
        >>> ridge = Penalty(np.ones(1), np.ones(1), 1.0, np.zeros((0, 0)))
        >>> problem.run(start, ridge).converged
        True
    """

    data: Regressors
    basis: Array
    nonlinearity: Nonlinearity
    likelihood: Likelihood = "poisson"
    fixed_courses: bool = False

    def __post_init__(self) -> None:
        self.lags, self.temporal = self.basis.shape
        used = self.data.used
        self._used = np.flatnonzero(used)
        y = self.data.response[used]
        self._spread = max(float(y.var()), 1e-12) if len(y) else 1.0
        total = float(np.abs(self.data.response[used]).sum())
        events = total if self.likelihood == "poisson" else float(used.sum())
        self._events = max(events, 1.0)

    def drive(self, at: Drive) -> Array:
        """The drive (frame,), which is meaningless in frames without a full history."""
        return self._drive(at, self._seen(at))

    def _seen(self, at: Drive) -> Array:
        seen: Array = (self.data.projected @ at.maps.T.astype(np.float32)).astype(float)
        return seen

    def _drive(self, at: Drive, seen: Array) -> Array:
        drive = np.full(len(seen), at.offset)
        for course, trace in zip(at.courses @ self.basis.T, seen.T, strict=True):
            drive += np.convolve(trace, course)[: len(drive)]
        if at.weights.size:
            drive += self.data.extra @ at.weights.astype(np.float32)
        return drive

    def first_frames(self) -> "FilterFit":
        """The same problem with the first `FIRST` frames.

        It is the whole problem if there are not twice as many frames, or if the cell was recorded
        in less than a quarter of the first ones, relative to all.
        """
        data, frames = self.data, len(self.data.used)
        if frames < 2 * FIRST or 4 * data.used[:FIRST].mean() < data.used.mean():
            return self
        here = slice(0, FIRST)
        some = Regressors(
            data.projected[here], data.response[here], data.used[here], data.extra[here]
        )
        return replace(self, data=some)

    def losses(self, rate: Array) -> Array:
        """The negative log-likelihoods (used frame,), in nats up to a constant.

        Args:
            rate: (used frame,) the expected responses.
        """
        y = self.data.response[self._used]
        if self.likelihood == "poisson":
            losses: Array = rate - xlogy(y, rate)
            return losses
        return (rate - y) ** 2 / (2 * self._spread)

    def _residual(self, rate: Array) -> tuple[Array, Array]:
        """The derivative of the loss by the rate and its expected second derivative."""
        y = self.data.response[self._used]
        if self.likelihood == "poisson":
            rate = np.maximum(rate, 1e-12)
            return 1 - y / rate, 1 / rate
        return (rate - y) / self._spread, np.full(len(rate), 1 / self._spread)

    def run(
        self,
        start: Drive,
        penalty: Penalty,
        tolerance: float = TOLERANCE,
        most: int = 60,
    ) -> Fitted:
        """Fits from given parameters.

        Args:
            start: the initial parameters.
            penalty: the priors.
            tolerance: of the expected gain of a further step, in bits per spike.
            most: the largest number of steps.
        """
        at = start if self.fixed_courses else start.balanced()
        prior = start.offset
        seen = self._seen(at)
        objective, parts = self._objective(at, seen, penalty, prior)
        gradient = self._gradient(at, seen, parts, penalty, prior)
        solve = self._solver(at, seen, parts, penalty)
        pairs: list[tuple[Array, Array]] = []
        fresh, decrement, number = True, np.inf, 0
        for number in range(1, most + 1):
            step = -_two_loops(gradient, pairs, solve)
            decrement = -0.5 * float(gradient @ step) / (self._events * np.log(2))
            if 0 <= decrement < tolerance:
                break
            length = 1.0
            while length > 1e-4:
                moved = at.moved(length * step)
                moved_seen = self._seen(moved)
                value, moved_parts = self._objective(moved, moved_seen, penalty, prior)
                if value < objective:
                    break
                length /= 4
            else:
                if fresh:
                    break
                # The direction is no descent direction of the function any more.
                solve, pairs, fresh = self._solver(at, seen, parts, penalty), [], True
                continue
            new = self._gradient(moved, moved_seen, moved_parts, penalty, prior)
            change = new - gradient
            if float(change @ step) > 1e-10 * float(np.linalg.norm(change) * np.linalg.norm(step)):
                pairs = [*pairs[-MEMORY + 1 :], (length * step, change)]
            at, seen, objective, parts, gradient = moved, moved_seen, value, moved_parts, new
            fresh = number % REFRESH == 0
            if fresh:
                solve, pairs = self._solver(at, seen, parts, penalty), []
        return Fitted(at, bool(0 <= decrement < tolerance), float(decrement), number)

    def _objective(
        self, at: Drive, seen: Array, penalty: Penalty, offset: float
    ) -> tuple[float, Parts]:
        """The loss plus the penalty, and the values and derivatives of the nonlinearity."""
        drive = self._drive(at, seen)[self._used]
        with np.errstate(over="ignore", invalid="ignore"):  # a step that is too long is shortened
            rate, slope, by_shape = self.nonlinearity(drive, at.shape)
            value = float(self.losses(rate).sum())
        time = (at.courses * penalty.temporal) @ at.courses.T
        space = (at.maps * penalty.spatial) @ at.maps.T
        value += 0.5 * penalty.strength * float((time * space).sum())
        value += 0.5 * float(at.weights @ penalty.extra @ at.weights)
        value += 0.5 * ((at.offset - offset) / OFFSET_SPREAD) ** 2
        return (value if np.isfinite(value) else np.inf), (rate, slope, by_shape)

    def _gradient(
        self, at: Drive, seen: Array, parts: Parts, penalty: Penalty, offset: float
    ) -> Array:
        rate, slope, by_shape = parts
        residual, _ = self._residual(rate)
        frames = len(seen)
        by_drive = np.zeros(frames)
        by_drive[self._used] = residual * slope
        rank = len(at.courses)
        courses = at.courses @ self.basis.T
        # Gradient of the loss.
        lagged = np.empty((rank, self.lags))
        back = np.empty((frames, rank), np.float32)
        for r in range(rank):
            for lag in range(self.lags):
                lagged[r, lag] = by_drive[lag:] @ seen[: frames - lag, r]
            back[:, r] = np.convolve(by_drive[::-1], courses[r])[:frames][::-1]
        by_courses = lagged @ self.basis
        by_maps = (back.T @ self.data.projected).astype(float)
        by_extra = (by_drive.astype(np.float32) @ self.data.extra).astype(float)
        gradient = np.concatenate(
            [
                by_courses.ravel(),
                by_maps.ravel(),
                by_extra,
                [by_drive.sum()],
                (residual @ by_shape),
            ]
        )
        gradient += self._penalty_gradient(at, penalty, offset)
        if self.fixed_courses:
            gradient[: at.courses.size] = 0
        return gradient

    def _solver(
        self, at: Drive, seen: Array, parts: Parts, penalty: Penalty
    ) -> Callable[[Array], Array]:
        """The product with the inverse of the expected Hessian of the loss and the penalty."""
        rate, slope, by_shape = parts
        _, weight = self._residual(rate)
        courses = at.courses @ self.basis.T
        hessian = self._expected_hessian(at, seen, courses, weight, slope, by_shape)
        self._add_penalty(at, penalty, hessian)
        if self.fixed_courses:
            free = at.courses.size
            hessian[:free], hessian[:, :free] = 0, 0
            hessian[np.arange(free), np.arange(free)] = 1
        else:
            _fix_scales(at, hessian)
        return _inverse(hessian)

    def _expected_hessian(
        self, at: Drive, seen: Array, courses: Array, weight: Array, slope: Array, by_shape: Array
    ) -> Array:
        """Jᵀ W J with the Jacobian J of the rate, from evenly spaced runs of frames."""
        rank, columns = at.maps.shape
        size = at.vector().size
        sums = np.zeros((size, size))
        index = np.full(len(seen), -1)
        index[self._used] = np.arange(len(self._used))
        curvature = weight * slope**2
        weight_used = 0.0
        # Matrices (frame, frame + lags - 1) that filter a run in time.
        filtering = [
            scipy.linalg.toeplitz(
                np.r_[course[-1], np.zeros(RUN - 1)], np.r_[course[::-1], np.zeros(RUN - 1)]
            ).astype(np.float32)
            for course in courses
        ]
        for begin, end in self._runs(size, len(seen)):
            here = np.flatnonzero(index[begin:end] >= 0)
            if not len(here):
                continue
            of_used = index[begin:end][here]
            jacobian = np.empty((len(here), size), np.float32)
            at_column = 0
            for r in range(rank):
                windows = np.lib.stride_tricks.sliding_window_view(
                    seen[begin - self.lags + 1 : end, r], self.lags
                )[here, ::-1]
                jacobian[:, at_column : at_column + self.temporal] = windows @ self.basis
                at_column += self.temporal
            part = self.data.projected[begin - self.lags + 1 : end]
            for product in filtering:
                jacobian[:, at_column : at_column + columns] = product[here, : len(part)] @ part
                at_column += columns
            jacobian[:, at_column : at_column + at.weights.size] = self.data.extra[begin:end][here]
            at_column += at.weights.size
            jacobian[:, at_column] = 1
            jacobian[:, : at_column + 1] *= slope[of_used, None]
            jacobian[:, at_column + 1 :] = by_shape[of_used]
            jacobian *= np.sqrt(weight[of_used])[:, None]
            sums += jacobian.T @ jacobian
            weight_used += float(curvature[of_used].sum())
        return sums * (float(curvature.sum()) / max(weight_used, 1e-300))

    def _runs(self, size: int, frames: int) -> list[tuple[int, int]]:
        first = self.lags - 1
        wanted = min(max(ENOUGH * size, 8000), 40_000)
        number = -(-wanted // RUN)
        if number * RUN >= frames - first:
            return [(b, min(b + RUN, frames)) for b in range(first, frames, RUN)]
        begins = np.linspace(first, frames - RUN, number).astype(int)
        return [(int(b), int(b) + RUN) for b in begins]

    def _penalty_gradient(self, at: Drive, penalty: Penalty, offset: float) -> Array:
        scaled_courses, scaled_maps = at.courses * penalty.temporal, at.maps * penalty.spatial
        time, space = scaled_courses @ at.courses.T, scaled_maps @ at.maps.T
        return np.concatenate(
            [
                penalty.strength * (space @ scaled_courses).ravel(),
                penalty.strength * (time @ scaled_maps).ravel(),
                penalty.extra @ at.weights,
                [(at.offset - offset) / OFFSET_SPREAD**2],
                np.zeros(len(at.shape)),
            ]
        )

    def _add_penalty(self, at: Drive, penalty: Penalty, hessian: Array) -> None:
        """Adds the Hessian of the penalty, with the filter linearised in its factors."""
        rank, temporal = at.courses.shape
        columns = at.maps.shape[1]
        scaled_courses, scaled_maps = at.courses * penalty.temporal, at.maps * penalty.spatial
        time, space = scaled_courses @ at.courses.T, scaled_maps @ at.maps.T
        k, maps_at = penalty.strength, rank * temporal
        extra_at = maps_at + rank * columns
        for r in range(rank):
            a = slice(r * temporal, (r + 1) * temporal)
            c = slice(maps_at + r * columns, maps_at + (r + 1) * columns)
            for s in range(rank):
                b = slice(s * temporal, (s + 1) * temporal)
                d = slice(maps_at + s * columns, maps_at + (s + 1) * columns)
                hessian[a, b] += np.diag(k * space[r, s] * penalty.temporal)
                hessian[c, d] += np.diag(k * time[r, s] * penalty.spatial)
                cross = k * np.outer(scaled_courses[s], scaled_maps[r])
                hessian[a, d] += cross
                hessian[d, a] += cross.T
        offset_at = extra_at + at.weights.size
        hessian[extra_at:offset_at, extra_at:offset_at] += penalty.extra
        hessian[offset_at, offset_at] += 1 / OFFSET_SPREAD**2


def _two_loops(
    gradient: Array, pairs: list[tuple[Array, Array]], solve: Callable[[Array], Array]
) -> Array:
    """The L-BFGS product of the inverse Hessian with the gradient (Nocedal & Wright, alg. 7.4)."""
    direction, factors = gradient.copy(), []
    for step, change in reversed(pairs):
        factors.append(float(step @ direction) / float(change @ step))
        direction -= factors[-1] * change
    direction = solve(direction)
    for (step, change), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - float(change @ direction) / float(change @ step)) * step
    return direction


def _fix_scales(at: Drive, hessian: Array) -> None:
    """Adds curvature along the directions that exchange factors between courses and maps.

    They change neither the filter nor the penalty, so that the Hessian is singular along them.
    """
    rank, level = len(at.courses), float(np.diag(hessian).mean())
    courses, number = at.courses.size, at.courses.size + at.maps.size
    for r in range(rank):
        for s in range(rank):
            direction = np.zeros(number)
            direction[:courses].reshape(at.courses.shape)[r] = at.courses[s]
            direction[courses:].reshape(at.maps.shape)[s] -= at.maps[r]
            direction /= np.linalg.norm(direction) + 1e-300
            hessian[:number, :number] += level * np.outer(direction, direction)


def fit_in_space(
    problem: FilterFit,
    space: FilterSpace,
    rank: int,
    start: Drive | None = None,
    extra: Array | None = None,
    tolerance: float = TOLERANCE,
) -> Fitted:
    """Fits a filter with the prior of its space.

    The prior is of the linear filter that is equivalent to the fitted one, which is the fitted one
    times the mean slope of the nonlinearity over the mean rate. The strength of the penalty is
    therefore adapted until it agrees with the fit.

    Args:
        problem: the data, of which `projected` are the projections on `space.images`, and
            `basis` is `space.courses`.
        space: of the filter.
        rank: the number of products of a temporal and a spatial filter; 0: a full filter.
        start: the initial parameters, by default those of a fit to the first frames, which begins
            with the average.
        extra: the precision matrix of the further regressors.
        tolerance: of the expected gain of a further step, in bits per spike.

    Example:
        >>> from retinakit.contracts import full_history
        >>> from retinakit.regression import Softplus, averages, filter_spaces, project
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> of = averages(train, lags=3)
        >>> (space,) = filter_spaces(of, 0, side=8, basis="cosine")
        >>> (seen,) = project(train["stimulus"], of.centre, [(space.region, space.images)])
        >>> used = full_history(train["segment"], 3)
        >>> counts = np.where(used, train["response"].values[:, 0], 0).astype(float)
        >>> data = Regressors(seen, counts, used, np.empty((len(seen), 0), np.float32))
        >>> fit_in_space(FilterFit(data, space.courses, Softplus()), space, rank=1).converged
        True
    """
    number = problem.data.extra.shape[1]
    if extra is None:
        extra = np.zeros((number, number))
    steps = 0
    if start is None:
        part = problem.first_frames()
        start = _start(part, space, rank)
        if part is not problem:
            first = fit_in_space(part, space, rank, start, extra, FIRST_TOLERANCE)
            start, steps = first.drive, first.iterations
    relative = _relative_slope(problem, start, space.scale)
    for _ in range(2):
        penalty = Penalty(space.temporal, space.spatial, relative**2 / space.variance, extra)
        fitted = problem.run(start, penalty, tolerance)
        start, steps = fitted.drive, steps + fitted.iterations
        before, relative = relative, _relative_slope(problem, start, space.scale)
        if abs(np.log(relative / before)) < 0.1:
            break
    return replace(fitted, iterations=steps)


def _start(problem: FilterFit, space: FilterSpace, rank: int) -> Drive:
    used = problem.data.response[problem.data.used]
    level = float(used.mean())
    if problem.nonlinearity.positive and level <= 0:
        # A silent cell, or a signed response whose mean is 0.
        level = max(float(used.std()), 0.5 / len(used))
    offset, shape = problem.nonlinearity.start(level)
    _, slope, _ = problem.nonlinearity(np.array([offset]), shape)
    weights = space.start * space.scale / max(float(slope[0]), 1e-12)
    none = np.zeros(problem.data.extra.shape[1])
    if rank == 0:
        return Drive(np.eye(len(weights)), weights, none, offset, shape)
    u, s, v = np.linalg.svd(weights, full_matrices=False)
    courses, maps = np.zeros((rank, len(weights))), np.zeros((rank, weights.shape[1]))
    some = min(rank, len(s))
    root = np.sqrt(s[:some])
    courses[:some], maps[:some] = (u[:, :some] * root).T, root[:, None] * v[:some]
    # A product of zeros is a stationary point.
    tiny = 1e-3 * np.sqrt(s[0]) if s[0] > 0 else 1e-6
    courses[some:, 0] = maps[some:, 0] = tiny
    return Drive(courses, maps, none, offset, shape)


def _relative_slope(problem: FilterFit, at: Drive, scale: float) -> float:
    """The mean slope of the nonlinearity over the scale of the response."""
    drive = problem.drive(at)[problem.data.used]
    _, slope, _ = problem.nonlinearity(drive, at.shape)
    return max(float(slope.mean()) / scale, 1e-12)


def _inverse(hessian: Array) -> Callable[[Array], Array]:
    """The product with the inverse of a matrix, damped until it is positive definite."""
    diagonal = np.maximum(np.diag(hessian), 1e-9 * max(float(np.diag(hessian).max()), 1e-30))
    for damping in (1e-6, 1e-4, 1e-2):
        try:
            factor = scipy.linalg.cho_factor(hessian + np.diag(damping * diagonal))
        except scipy.linalg.LinAlgError:
            continue
        return lambda vector: scipy.linalg.cho_solve(factor, vector)
    return lambda vector: vector / diagonal
