"""Sums over lags, and temporal filters."""

import torch
from torch import Tensor
from torch.nn.functional import pad

FILTER_BLOCK = 64
"""Number of frames that are filtered with one banded matrix."""


def sum_over_lags(shifted: Tensor, lags: int, every: int = 1) -> Tensor:
    """Sums products of frames and kernels over lags.

        out[t] = Σ_lag products[t + lags - 1 - lag, lag]

    Args:
        shifted: (n + lags - 1, lags, ...), the products of each frame with the kernel at each lag.
        lags: the number of lags.
        every: return only each `every`-th of the n sums, beginning with the first.

    Returns:
        (n, ...), or (⌈n / every⌉, ...).

    Example:
        >>> import torch
        >>> products = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])  # (frame, lag)
        >>> sum_over_lags(products, lags=2).tolist()
        [12.0, 24.0]
    """
    n = len(shifted) - lags + 1
    total = shifted[lags - 1 :: every, 0]
    for lag in range(1, lags):
        total = total + shifted[lags - 1 - lag : lags - 1 - lag + n : every, lag]
    return total


def histories(frames: Tensor, lags: int, every: int) -> Tensor:
    """The histories of each `every`-th frame, as a view of the frames.

    Args:
        frames: (n + lags - 1, ...), oldest first.
        lags: the length of a history in frames.
        every: the step in frames.

    Returns:
        (⌈n / every⌉, lags, ...), oldest frame first.

    Example:
        >>> histories(torch.arange(5), lags=2, every=3).tolist()
        [[0, 1], [3, 4]]
    """
    return frames.unfold(0, lags, every).movedim(-1, 1)


def filter_in_space_and_time(frames: Tensor, filters: Tensor, every: int = 1) -> Tensor:
    """Applies spatiotemporal filters of the size of the field to the history of each frame.

        out[t, f] = Σ_lag,pixel filters[f, lag, pixel] · frames[t + lags - 1 - lag, pixel]

    Args:
        frames: (n + lags - 1, pixel), oldest first.
        filters: (filter, lag, pixel); lag 0 is the newest frame.
        every: return only each `every`-th of the n outputs, beginning with the first.

    Returns:
        (n, filter), or (⌈n / every⌉, filter).

    Example:
        >>> import torch
        >>> frames = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]])
        >>> filters = torch.tensor([[[1.0, 5.0], [10.0, 0.0]]])  # one filter of two lags
        >>> filter_in_space_and_time(frames, filters).tolist()
        [[12.0], [29.0]]
    """
    count, lags, _ = filters.shape
    if every > 1:  # most products of frames and filters would not be used
        return histories(frames, lags, every).flatten(1) @ filters.flip(1).flatten(1).T
    by_lag = frames @ filters.transpose(0, 1).flatten(0, 1).T
    return sum_over_lags(by_lag.view(-1, lags, count), lags)


def filter_over_lags(frames: Tensor, weight: Tensor, every: int = 1) -> Tensor:
    """Filters each channel in time.

        out[t, c] = Σ_lag weight[lag, c] · frames[t + lags - 1 - lag, c]

    Blocks of frames are multiplied with a banded matrix, which is several times faster than a
    grouped convolution.

    Args:
        frames: (n + lags - 1, channel, ...), oldest first.
        weight: (lags, channel); lag 0 is the newest frame.
        every: return only each `every`-th of the n frames, beginning with the first.

    Returns:
        (n, channel, ...), or (⌈n / every⌉, channel, ...).

    Example:
        >>> import torch
        >>> frames = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)  # (frame, channel, place)
        >>> filter_over_lags(frames, torch.tensor([[1.0], [10.0]])).flatten().tolist()
        [12.0, 24.0]
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
