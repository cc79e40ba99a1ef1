"""Sums over the lags of a history, and filters in time."""

import torch
from torch import Tensor
from torch.nn.functional import pad

FILTER_BLOCK = 64
"""Frames that are filtered with one banded matrix."""


def sum_over_lags(shifted: Tensor, lags: int, every: int = 1) -> Tensor:
    """Σ over lags of a product that was taken frame by frame.

    Args:
        shifted: (n + lags - 1, lags, ...), the product of frame t with the kernel at each lag.
        every: give only each `every`-th of the n sums, from the first on.

    Returns:
        (n, ...): out[t] = Σ_lag shifted[t + lags - 1 - lag, lag].
    """
    n = len(shifted) - lags + 1
    total = shifted[lags - 1 :: every, 0]
    for lag in range(1, lags):
        total = total + shifted[lags - 1 - lag : lags - 1 - lag + n : every, lag]
    return total


def histories(frames: Tensor, lags: int, every: int) -> Tensor:
    """The histories of each `every`-th frame: (n, lags, ...), the oldest frame of each first.

    A view of the frames (m, ...), of which no window is copied.
    """
    return frames.unfold(0, lags, every).movedim(-1, 1)


def filter_in_space_and_time(frames: Tensor, filters: Tensor, every: int = 1) -> Tensor:
    """The products of each frame's history with filters of the size of the field.

    Args:
        frames: (n + lags - 1, pixel), oldest first.
        filters: (filter, lag, pixel).
        every: give only each `every`-th of the n products, from the first on.

    Returns:
        (n, filter): out[t, f] = Σ_lag,pixel filters[f, lag, pixel] · frames[t + lags - 1 - lag].
    """
    count, lags, _ = filters.shape
    if every > 1:  # most products of a frame with the filters would not be used
        return histories(frames, lags, every).flatten(1) @ filters.flip(1).flatten(1).T
    by_lag = frames @ filters.transpose(0, 1).flatten(0, 1).T
    return sum_over_lags(by_lag.view(-1, lags, count), lags)


def filter_over_lags(frames: Tensor, weight: Tensor, every: int = 1) -> Tensor:
    """Each channel filtered in time.

    Blocks of frames are multiplied with a banded matrix, which is several times as fast as a
    grouped convolution.

    Args:
        frames: (n + lags - 1, channel, ...), oldest first.
        weight: (lags, channel).
        every: give only each `every`-th of the n frames, from the first on.

    Returns:
        (n, channel, ...): out[t] = Σ_lag weight[lag] · frames[t + lags - 1 - lag].
    """
    if every > 1:
        shown = histories(frames, len(weight), every)
        return torch.einsum("nlc...,lc->nc...", shown, weight.flip(0))
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
