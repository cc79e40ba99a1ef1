"""Fit of a generalized linear model with a low-rank stimulus filter to the spikes of one cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retinakit.regression.count_model import CountModel
from retinakit.regression.filter_space import FilterSpace
from retinakit.regression.newton import TOLERANCE, NewtonFit, Priors, fit_newton
from retinakit.simulation import filter_in_time

Array = NDArray[np.float64]
Design = NDArray[np.float32]
Factor = Literal["time", "space"]

STEPS = 3
"""Newton steps for the spatial factors before the temporal factors are fitted, and vice versa."""


@dataclass(frozen=True)
class GLMData:
    """The spikes of a cell in one split, and their regressors.

    Attributes:
        projected: (frame, image) the stimulus in the spatial basis of the filter.
        pieces: the segments of the split, as returned by `retinakit.contracts.segments`.
        frames: (n,) the frames that are used. They have a full history. With repeats, a frame may
            occur more than once.
        count: (n,) spikes per bin.
        others: (n, column) the other regressors, of which the last one is 1.

    Example:
        >>> light = np.ones((4, 1), np.float32)
        >>> frames, others = np.array([2, 3]), np.ones((2, 1), np.float32)
        >>> GLMData(light, [slice(0, 4)], frames, np.array([0.0, 2.0]), others).count.sum()
        np.float64(2.0)
    """

    projected: Design
    pieces: list[slice]
    frames: NDArray[np.int64]
    count: Array
    others: Design


@dataclass
class GLMFit:
    """The result of a fit.

    Attributes:
        factors: (course, image), the stimulus filter in the bases of its `FilterSpace`.
        weights: (column,) of the other regressors.
        train_loss, validation_loss: of each Newton step, the negative log-likelihood in nats per
            bin before the step.
        decrement: of each Newton step, its expected gain in bits per spike.
        converged: whether further steps are expected to gain less than 1e-5 bits per spike.

    Example:
        >>> GLMFit(factors=np.zeros((5, 1)), weights=np.array([-2.0])).converged
        False
    """

    factors: Array
    weights: Array
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    decrement: list[float] = field(default_factory=list)
    converged: bool = False


def fit_glm(
    space: FilterSpace,
    train: GLMData,
    held_out: GLMData,
    model: CountModel,
    *,
    sizes: Sequence[int],
    rank: int = 1,
    most: int = 100,
    tell: Callable[[int], None] = lambda step: None,
) -> GLMFit:
    """Fits the stimulus filter together with the weights of other regressors.

    The filter is the sum of `rank` products of temporal and spatial factors. Given one of these,
    the model is a generalized linear model, so that both are fitted in turn, by `fit_newton`. The
    filter has the prior of its space. The other weights have the priors of `fit_newton`.

    Args:
        space: of the stimulus filter.
        train: the data that are fitted.
        held_out: the data of which the validation loss is computed.
        model: of the counts.
        sizes: the numbers of consecutive columns of `GLMData.others` that have a prior together;
            the last column has none.
        rank: of the stimulus filter.
        most: the largest number of Newton steps.
        tell: is called with the number of steps.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit.regression import averages, filter_spaces, project
        >>> split = small_recording()["train"].to_dataset()
        >>> found = averages(split, lags=5)
        >>> space, = filter_spaces(found, 0, side=8, basis="cosine")
        >>> projected, = project(split["stimulus"], found.centre, [(space.region, space.images)])
        >>> frames, others = np.arange(1004, 2000), np.ones((996, 1), np.float32)
        >>> count = split["response"].values[frames, 0].astype(float)
        >>> data = GLMData(projected, [slice(0, 1000), slice(1000, 2000)], frames, count, others)
        >>> fit = fit_glm(space, data, data, CountModel(), sizes=[])
        >>> fit.converged, fit.factors.shape == (space.courses.shape[1], len(space.spatial))
        (True, True)
    """
    return _Alternation(space, (train, held_out), model, list(sizes), rank, tell).run(most)


class _Alternation:
    def __init__(
        self,
        space: FilterSpace,
        data: tuple[GLMData, GLMData],
        model: CountModel,
        sizes: list[int],
        rank: int,
        tell: Callable[[int], None],
    ):
        self.space, self.data, self.model, self.sizes = space, data, model, sizes
        self.rank, self.tell = rank, tell
        u, s, v = np.linalg.svd(space.start, full_matrices=False)
        start = (u[:, :rank] * s[:rank]) @ v[:rank]
        self.fit = GLMFit(start, np.zeros(data[0].others.shape[1]))

    def run(self, most: int) -> GLMFit:
        fit = self.fit
        newton = self._half_step("time", None, most)
        fit.converged = newton.converged
        # A full-field stimulus has no spatial factors.
        while len(self.space.spatial) > 1 and len(fit.decrement) < most:
            gains = []
            factors: tuple[Factor, Factor] = ("space", "time")
            for factor in factors:
                begin = len(fit.decrement)
                newton = self._half_step(factor, newton, STEPS)
                gains.append(fit.decrement[begin])
            fit.converged = bool(max(gains) < TOLERANCE)
            if fit.converged:
                break
        return fit

    def _half_step(self, factor: Factor, before: NewtonFit | None, most: int) -> NewtonFit:
        """Fits the temporal or the spatial factors, and all other weights."""
        space, fit = self.space, self.fit
        time, place = np.sqrt(space.temporal), np.sqrt(space.spatial)
        u, s, v = np.linalg.svd(time[:, None] * fit.factors * place, full_matrices=False)
        u, s, v = u[:, : self.rank], s[: self.rank], v[: self.rank].T
        # The fixed factors are orthonormal in the metric of the prior, so that the prior of the
        # free ones has independent components of equal strength.
        if factor == "time":
            fixed, free, relative = v / place[:, None], u * s / time[:, None], space.temporal
        else:
            fixed, free, relative = u / time[:, None], v * s / place[:, None], space.spatial
        designs = [
            np.concatenate([self._columns(data, factor, fixed), data.others], axis=1)
            for data in self.data
        ]
        train, held_out = self.data
        start = None
        if before is not None:
            start = NewtonFit(np.concatenate([free.ravel(), fit.weights]), before.precision)

        def tell(weights: Array) -> None:
            loss = np.nan
            if len(held_out.count):
                drive = (designs[1] @ weights.astype(np.float32)).astype(float)
                loss = self.model.loss(drive, held_out.count) / len(held_out.count)
            fit.validation_loss.append(loss)
            self.tell(len(fit.validation_loss))

        newton = fit_newton(
            designs[0],
            train.count,
            Priors.of(np.repeat(relative, free.shape[1]) / space.variance, self.sizes),
            self.model,
            start=start,
            # Given the temporal or given the spatial factors, the evidence of all other weights
            # differs. One of the two is used, so that the alternation has a fixed point.
            evidence=factor == "time",
            most=most,
            tell=tell,
        )
        fit.train_loss += [loss / len(train.count) for loss in newton.loss]
        fit.decrement += newton.decrement
        free = newton.weights[: free.size].reshape(free.shape)
        fit.factors = free @ fixed.T if factor == "time" else fixed @ free.T
        fit.weights = newton.weights[free.size :]
        return newton

    def _columns(self, data: GLMData, factor: Factor, fixed: Array) -> Design:
        """The regressors (n, factor · component) of the free factors."""
        courses = self.space.courses
        if not len(data.frames):
            return np.empty((0, 0), np.float32)
        if factor == "time":
            traces = data.projected @ fixed.astype(np.float32)
            windows = np.lib.stride_tricks.sliding_window_view(traces, len(courses), axis=0)
            chosen = windows[data.frames - len(courses) + 1].reshape(-1, len(courses))
            columns = chosen @ courses[::-1].astype(np.float32)  # windows begin with the last lag
            columns = columns.reshape(len(data.frames), fixed.shape[1], -1)
        else:
            filtered = [
                filter_in_time(data.projected, course, data.pieces)[data.frames]
                for course in (courses @ fixed).T
            ]
            columns = np.stack(filtered, axis=1)
        return columns.transpose(0, 2, 1).reshape(len(columns), -1)
