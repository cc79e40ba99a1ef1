"""Fit of a generalized linear model by Newton's method, with priors chosen by evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from retinakit.regression.count_model import CountModel

Array = NDArray[np.float64]

BLOCK = 2048
"""Number of frames whose products are computed together."""

ENOUGH = (50_000, 50)
"""The Hessian is computed from a subset of this many frames, or this many for each column."""

TOLERANCE = 1e-5
"""A fit has converged if a further step is expected to gain less, in bits per spike."""

WIDEST = 5.0
"""Largest standard deviation of a prior. It keeps weights finite that the data push to infinity,
such as those of an absolute refractory period."""

SETTLED = 10
"""From this iteration on, and in a fit that starts from another one, precisions only increase."""

NARROWEST = 1e4
"""A prior is at most this factor more precise than the data, which leaves a weight of nearly 0."""


@dataclass(frozen=True)
class Priors:
    """Gaussian priors of the weights around 0.

    The prior of a weight has the precision of its group, which is chosen by evidence, times its
    relative precision. A weight without group has its relative precision.

    Attributes:
        groups: (column,) the group of each weight from 0; -1 for none.
        relative: (column,) the relative precisions.

    Example:
        >>> priors = Priors.of(np.array([4.0]), [2, 1])
        >>> priors.groups.tolist(), priors.precisions(np.array([0.1, 1.0])).tolist()
        ([-1, 0, 0, 1, -1], [4.0, 0.1, 0.1, 1.0, 0.0])
    """

    groups: NDArray[np.int64]
    relative: Array

    @classmethod
    def of(cls, fixed: Array, sizes: Sequence[int]) -> Self:
        """The priors of weights of fixed precision, of groups, and of an offset without prior.

        Args:
            fixed: the precisions of the first weights.
            sizes: the number of weights of each group, which follow.
        """
        numbers = np.repeat([-1, *range(len(sizes)), -1], [len(fixed), *sizes, 1])
        return cls(numbers, np.concatenate([fixed, np.ones(sum(sizes)), [0.0]]))

    def precisions(self, of_groups: Array) -> Array:
        """The precision (column,) of each weight, given those of the groups."""
        return np.append(of_groups, 1.0)[self.groups] * self.relative


@dataclass
class NewtonFit:
    """The result of a fit.

    Attributes:
        weights: (column,) the most probable weights.
        precision: (group,) the precisions of the groups.
        decrement: for each iteration, the expected gain of its step, in bits per spike.
        loss: for each iteration, the negative log-likelihood before its step, in nats.
        converged: whether the last decrement is below the tolerance.
    """

    weights: Array
    precision: Array
    decrement: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    converged: bool = False


def fit_newton(
    design: NDArray[np.float32],
    count: Array,
    priors: Priors,
    model: CountModel,
    *,
    start: NewtonFit | None = None,
    evidence: bool = True,
    most: int = 50,
    tolerance: float = TOLERANCE,
    tell: Callable[[Array], None] = lambda weights: None,
) -> NewtonFit:
    """Maximises the penalised likelihood of counts whose drive is design @ weights.

    The precision of each group of weights is chosen by evidence (MacKay 1992) in every iteration,
    from the quadratic expansion of the log-likelihood, so that groups without effect get weights
    near 0. A step solves the normal equations with the expected Hessian, and is halved until it
    lowers the penalised loss.

    Args:
        design: (frame, column); the last column is 1.
        count: (frame,) spikes per bin.
        priors: of the weights.
        model: of the counts.
        start: a fit with the initial weights and precisions; by default, a constant rate.
        evidence: whether to choose the precisions; otherwise they keep those of `start`.
        most: the largest number of iterations.
        tolerance: of the expected gain of a further step, in bits per spike.
        tell: is called with the weights (column,) before each step.

    Example:
        >>> random = np.random.default_rng(0)
        >>> x = np.c_[random.standard_normal((5000, 2)), np.ones(5000)].astype(np.float32)
        >>> count = random.poisson(np.exp(x @ [0.5, 0, -1])).astype(float)
        >>> fit = fit_newton(x, count, Priors.of(np.empty(0), [1, 1]), CountModel())
        >>> fit.converged, fit.weights.round(1).tolist()
        (True, [0.5, 0.0, -1.0])
    """
    spikes = max(float(count.sum()), 1.0)
    if start is None:
        weights = np.zeros(design.shape[1])
        weights[-1] = model.drive(float(count.mean()))
        precision = np.full(priors.groups.max(initial=-1) + 1, WIDEST**-2)
    else:
        weights, precision = start.weights, start.precision
    fit = NewtonFit(weights, precision)
    drive = _drive(design, weights)
    loss = model.loss(drive, count)
    for iteration in range(most):
        tell(weights)
        gradient, hessian = _derivatives(design, model.slopes(drive, count))
        if evidence:
            best = _evidence(hessian, hessian @ weights - gradient, priors, precision)
            # The expansion of a likelihood without a maximum may alternate between two precisions.
            settled = start is not None or iteration >= SETTLED
            precision = np.maximum(best, precision) if settled else best
        penalty = priors.precisions(precision)
        gradient += penalty * weights
        step = -_solve(hessian + np.diag(penalty), gradient)
        fit.loss.append(loss)
        fit.decrement.append(-0.5 * float(gradient @ step) / (spikes * np.log(2)))
        before = loss + 0.5 * float(penalty @ weights**2)
        for halved in range(20):
            moved = weights + step / 2**halved
            drive = _drive(design, moved)
            loss = model.loss(drive, count)
            # A difference below the precision of the sum is not a reason to halve the step.
            if loss + 0.5 * float(penalty @ moved**2) <= before + 1e-9 * abs(before):
                weights = moved
                break
        else:
            break
        if halved == 0 and fit.decrement[-1] < tolerance:
            fit.converged = True
            break
    fit.weights, fit.precision = weights, precision
    return fit


def _drive(design: NDArray[np.float32], weights: Array) -> Array:
    return (design @ weights.astype(np.float32)).astype(float)


def _derivatives(design: NDArray[np.float32], slopes: tuple[Array, Array]) -> tuple[Array, Array]:
    """The gradient (column,) of the loss, and its expected Hessian from evenly spaced blocks."""
    frames, columns = design.shape
    gradient, hessian = np.zeros(columns), np.zeros((columns, columns))
    first, second = (slope.astype(np.float32) for slope in slopes)
    root = np.sqrt(second)
    every = max(1, frames // max(ENOUGH[0], ENOUGH[1] * columns))
    used = 0.0
    for number, begin in enumerate(range(0, frames, BLOCK)):
        part = slice(begin, begin + BLOCK)
        gradient += first[part] @ design[part]
        if number % every == 0:
            scaled = design[part] * root[part, None]
            hessian += scaled.T @ scaled
            used += float(slopes[1][part].sum())
    return gradient, hessian * (float(slopes[1].sum()) / max(used, 1e-300))


def _evidence(
    hessian: Array, target: Array, priors: Priors, precision: Array, most: int = 20
) -> Array:
    """The precisions (group,) that maximise the evidence of a quadratic log-likelihood.

    Args:
        hessian: H of the loss w H w / 2 - target w.
        target: (column,).
        priors: of the weights.
        precision: (group,) the initial values.
        most: the largest number of iterations.
    """
    members = [np.flatnonzero(priors.groups == group) for group in range(len(precision))]
    widest, relative = WIDEST**-2, priors.relative
    known = np.array([np.diag(hessian)[m].mean() for m in members])
    narrowest = NARROWEST * known + 1e2 * widest
    precision = np.clip(precision, widest, narrowest)
    for _ in range(most):
        covariance = _solve(hessian + np.diag(priors.precisions(precision)), np.eye(len(hessian)))
        weights, variance = covariance @ target, np.diag(covariance)
        new = precision.copy()
        for group, m in enumerate(members):
            determined = len(m) - precision[group] * float(relative[m] @ variance[m])
            power = float(relative[m] @ weights[m] ** 2)
            new[group] = max(determined, 0.0) / power if power > 0 else np.inf
        new = np.clip(new, widest, narrowest)
        change = float(np.abs(np.log(new / precision)).max(initial=0))
        precision = new
        if change < 1e-2:
            break
    return precision


def _solve(matrix: Array, right: Array) -> Array:
    """The solution of a positive semidefinite system, with a ridge if it is singular."""
    scale = max(float(np.diag(matrix).max(initial=0)), 1e-12)
    for ridge in (0.0, 1e-9, 1e-6, 1e-3):
        try:
            factor = scipy.linalg.cho_factor(matrix + ridge * scale * np.eye(len(matrix)))
        except scipy.linalg.LinAlgError:
            continue
        solved: Array = scipy.linalg.cho_solve(factor, right)
        return solved
    raise ValueError("the Hessian is not finite")
