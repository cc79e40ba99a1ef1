"""Temporal filtering within segments."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


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
