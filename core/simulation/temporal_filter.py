"""A biphasic temporal filter, and temporal filtering within segments."""

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def biphasic(lags: int, frame_interval: float, tau: float, delay: float) -> NDArray[np.float64]:
    """The temporal filter of a bipolar cell: a difference of two gamma functions, of unit norm.

    It is γ(4, t) - γ(5, t) with γ(n, t) = (t/τ)^(n-1) exp(-t/τ) / (τ (n-1)!), the filter of Yan et
    al. (2020), section II-A. It is first positive.

    Args:
        lags: length in frames.
        frame_interval: in seconds.
        tau: the time constant τ in seconds.
        delay: in seconds, before which the filter is 0.

    Returns:
        (lag,); lag 0 is the current frame.

    Example:
        >>> biphasic(20, 1 / 30, tau=0.05, delay=2 / 30).round(2)[2:9].tolist()
        [0.0, 0.12, 0.41, 0.53, 0.43, 0.21, 0.0]
    """
    after = np.clip(np.arange(lags) * frame_interval - delay, 0, None) / tau

    def gamma(n: int) -> NDArray[np.float64]:
        value: NDArray[np.float64] = (
            after ** (n - 1) * np.exp(-after) / (tau * math.factorial(n - 1))
        )
        return value

    kernel = gamma(4) - gamma(5)
    return kernel / np.linalg.norm(kernel)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _filter(stimulus: NDArray[Any], kernel: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for t in range(len(stimulus)):
        for lag in range(min(len(kernel), t + 1)):
            weight, frame = kernel[lag], stimulus[t - lag]
            for p in range(stimulus.shape[1]):
                out[t, p] += weight * np.float32(frame[p])


def filter_in_time(
    stimulus: NDArray[Any], kernel: NDArray[Any], pieces: list[slice]
) -> NDArray[np.float32]:
    """Filters a stimulus in time, Σ_lag kernel[lag] · stimulus[t - lag].

    The stimulus before the start of a segment is taken as 0.

    Args:
        stimulus: (frame, ...), of any numeric dtype.
        kernel: (lag,); lag 0 is the current frame.
        pieces: the segments, as returned by `retinakit.contracts.segments`.

    Returns:
        (frame, ...) float32.

    Example:
        >>> import numpy as np
        >>> flashes = np.array([1.0, 0, 0, 1, 0])[:, None]
        >>> filter_in_time(flashes, [0.5, 2.0], [slice(0, 3), slice(3, 5)])[:, 0].tolist()
        [0.5, 2.0, 0.0, 0.5, 2.0]
    """
    flat = np.ascontiguousarray(stimulus).reshape(len(stimulus), -1)
    if flat.dtype == bool:
        flat = flat.view(np.uint8)
    out = np.zeros(flat.shape, np.float32)
    for piece in pieces:
        _filter(flat[piece], np.asarray(kernel, np.float32), out[piece])
    return out.reshape(stimulus.shape)
