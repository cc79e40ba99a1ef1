"""Sums over the lags of a history, and filters in time."""

import torch
from torch import Tensor
from torch.nn.functional import pad

FILTER_BLOCK = 64
"""Frames that are filtered with one banded matrix."""


def sum_over_lags(shifted: Tensor, lags: int) -> Tensor:
    """Σ over lags of a product that was taken frame by frame.

    Args:
        shifted: (n + lags - 1, lags, ...), the product of frame t with the kernel at each lag.

    Returns:
        (n, ...): out[t] = Σ_lag shifted[t + lags - 1 - lag, lag].
    """
    n = len(shifted) - lags + 1
    total = shifted[lags - 1 :, 0]
    for lag in range(1, lags):
        total = total + shifted[lags - 1 - lag : lags - 1 - lag + n, lag]
    return total


def filter_over_lags(frames: Tensor, weight: Tensor) -> Tensor:
    """Each channel filtered in time.

    Blocks of frames are multiplied with a banded matrix, which is several times as fast as a
    grouped convolution.

    Args:
        frames: (n + lags - 1, channel, ...), oldest first.
        weight: (lags, channel).

    Returns:
        (n, channel, ...): out[t] = Σ_lag weight[lag] · frames[t + lags - 1 - lag].
    """
    lags, n = len(weight), len(frames) - len(weight) + 1
    blocks = -(-n // FILTER_BLOCK)
    places = pad(frames.flatten(2), (0, 0, 0, 0, 0, blocks * FILTER_BLOCK - n))
    length = FILTER_BLOCK + lags - 1
    windows = places.unfold(0, length, FILTER_BLOCK)  # (block, channel, place, frame)
    at = torch.arange(FILTER_BLOCK, device=weight.device)
    lag = at + lags - 1 - torch.arange(length, device=weight.device)[:, None]
    inside = (lag >= 0) & (lag < lags)
    banded = torch.where(inside, weight.T[:, lag.clamp(0, lags - 1)], 0)  # (channel, frame, out)
    filtered = torch.einsum("bcpw,cwt->btcp", windows, banded)
    return filtered.flatten(0, 1)[:n].view(n, *frames.shape[1:])
