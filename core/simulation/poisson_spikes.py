"""Spike counts drawn from predicted rates."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retinakit.contracts import UserError

LARGEST_RATE = 1e9
"""Largest rate, in spikes per bin, for which spikes are drawn."""


def poisson_spikes(rate: ArrayLike, repeats: int, seed: int) -> NDArray[np.unsignedinteger]:
    """Poisson spike counts for predicted rates.

    A negative prediction, which linear models make, counts as a rate of 0. So does NaN, the
    prediction for a frame without a full history.

    Args:
        rate: (...), in spikes per bin.
        repeats: the number of counts drawn for each rate.
        seed: of the random draws.

    Returns:
        (repeats, ...), of the smallest unsigned integer type that holds them.

    Raises:
        UserError: if a rate is infinite or above `LARGEST_RATE`.

    Example:
        >>> poisson_spikes([0.0, -0.5, float("nan"), 1000.0], repeats=2, seed=0).shape
        (2, 4)
    """
    expected = np.nan_to_num(np.asarray(rate, float), nan=0.0, posinf=np.inf).clip(0)
    highest = expected.max(initial=0)
    if highest > LARGEST_RATE:
        raise UserError(
            f"a prediction is {highest:g} spikes per bin, from which no spikes can be drawn; lower "
            "learning_rate or choose another nonlinearity"
        )
    drawn = np.random.default_rng(seed).poisson(expected, (repeats, *expected.shape))
    return drawn.astype(np.min_scalar_type(int(drawn.max(initial=0))))
