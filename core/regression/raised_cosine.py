"""Raised cosines with logarithmically stretched time, a basis of spike-history filters."""

import numpy as np
from numpy.typing import NDArray


def raised_cosines(length: int, number: int, stretch: float = 1.0) -> NDArray[np.float64]:
    """Raised cosines in the logarithm of time (Pillow et al. 2008, methods).

    Function j at the lag t is (1 + cos(clip((log(t + stretch) - c_j) π / (2 d), -π, π))) / 2. The
    centres c_j are d apart, from lag 1 on, and all functions are 0 after the last lag. The first
    functions are narrow, for the refractory period, and later ones are increasingly broad.

    Args:
        length: the number of lags. Lag 1 is the bin before that of the response.
        number: the number of functions. If it is at least `length`, each lag has its own function.
        stretch: in bins; time is stretched logarithmically beyond this lag and linearly before it.

    Returns:
        (lag, function) with `length` lags and at most `number` functions.

    Raises:
        ValueError: if `length` or `number` is negative, or `stretch` is not positive.

    Example:
        >>> basis = raised_cosines(length=20, number=5)
        >>> basis.argmax(0) + 1  # the lags of the peaks
        array([1, 2, 3, 6, 9])
        >>> raised_cosines(length=2, number=5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if length < 0 or number < 0 or stretch <= 0:
        raise ValueError(f"no basis of {number} functions and {length} lags, stretch {stretch}")
    if number >= length:
        return np.eye(length)
    if number == 0:
        return np.empty((length, 0))
    time = np.log(np.arange(1, length + 1) + stretch)
    distance = (np.log(length + 1 + stretch) - time[0]) / (number + 1)
    centres = time[0] + distance * np.arange(number)
    phase = (time[:, None] - centres) * np.pi / (2 * distance)
    return (1 + np.cos(np.clip(phase, -np.pi, np.pi))) / 2


def orthonormal(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """An orthonormal basis of the same functions, in which a filter has the norm of its weights.

    Args:
        basis: (lag, function).

    Returns:
        (lag, function), with fewer functions if some depend linearly on others.

    Example:
        >>> orthonormal(np.array([[1.0, 2.0], [0.0, 0.0]])).shape
        (2, 1)
    """
    u, s, _ = np.linalg.svd(basis, full_matrices=False)
    kept: NDArray[np.float64] = u[:, s > 1e-3 * s.max(initial=0)]
    return kept
