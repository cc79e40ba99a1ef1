"""Convolutions of stimuli with filters, "valid", with the fastest of several algorithms."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from retinakit.layers.fourier import correlate_by_transform
from retinakit.layers.lags import histories, sum_over_lags

DENSE_ADVANTAGE = 3.0
"""Largest ratio of field area to filter area at which a matrix product is used, without lags."""

DENSE_ADVANTAGE_IN_TIME = 6.0
"""The same with several lags, for which torch's convolution makes many maps that are summed. A
product is 1.1 to 3.6 times faster up to here (10 x 14 pixels and filters of 5 x 5, for example)."""

FOURIER_AREA = 49
"""Smallest filter area, in pixels, at which Fourier transforms are used, for a single channel."""

FOURIER_FILTERS = 8
"""Largest number of filters at which Fourier transforms are used; each filter needs an inverse
transform."""

FOURIER_WORK = 180
"""Smallest number of products of the direct convolution for each pixel of the frames, kernels and
maps at which Fourier transforms are used, for any number of channels. With the backward pass, they
are as fast as torch's convolution at 150 (20 channels of 30 x 30 pixels and 16 filters of 5 x 5, in
batches of 64), 1.7 times faster at 340 (the same with filters of 9 x 9), 4 times at 940 (32
channels of 31 x 31, 48 filters of 13 x 13), and 18 times at full size in Zheng et al. (2021)."""


def kernel_shape(side: int, field: tuple[int, int]) -> tuple[int, int]:
    """The height and width of a kernel; 1 along a dimension in which the field has one check.

    Args:
        side: of the kernel, in checks.
        field: height and width of the stimulus.

    Example:
        >>> kernel_shape(7, (40, 50)), kernel_shape(7, (1, 24)), kernel_shape(7, (1, 1))
        ((7, 7), (1, 7), (1, 1))
    """
    height, width = (side if checks > 1 else 1 for checks in field)
    return height, width


def correlate(frames: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """Convolves frames with kernels, "valid" and without flipping the kernels.

        out[t, k, y, x] = Σ_c,i,j frames[t, c, stride·y + i, stride·x + j] · kernels[k, c, i, j]

    On a CPU, torch's convolution is several times slower in three cases. If the field is not much
    larger than the kernels, one matrix product is used instead. For few large kernels and one
    channel, and for many large kernels and channels, products of Fourier transforms are used.

    Args:
        frames: (n, channel, y, x).
        kernels: (k, channel, kernel_y, kernel_x).
        stride: in pixels, along y and x.

    Returns:
        (n, k, map_y, map_x).

    Example:
        >>> import torch
        >>> frames = torch.arange(9.0).view(1, 1, 3, 3)
        >>> correlate(frames, torch.ones(1, 1, 2, 2)).tolist()
        [[[[8.0, 12.0], [20.0, 24.0]]]]
    """
    if _prefers_spectra(frames, kernels, stride):
        return correlate_by_transform(frames, kernels)
    if _prefers_convolution(frames, kernels, DENSE_ADVANTAGE):
        if _prefers_transform(frames, kernels, stride):
            return _by_transform(frames, kernels)
        return conv2d(frames, kernels, stride=stride)
    placed = _placed(kernels, frames.shape[-2:], stride)  # (k, map_y, map_x, channel, y, x)
    product = frames.flatten(1) @ placed.flatten(3).flatten(0, 2).T
    return product.view(-1, *placed.shape[:3])


def correlate_in_time(frames: Tensor, kernels: Tensor, stride: int = 1, every: int = 1) -> Tensor:
    """Convolves frames with kernels in space and time; see `correlate`.

    Args:
        frames: (n + lags - 1, channel, y, x), oldest first.
        kernels: (lag, k, channel, kernel_y, kernel_x); lag 0 is the newest frame.
        stride: in pixels, along y and x.
        every: return only each `every`-th frame of the result, beginning with the first.

    Returns:
        (n, k, map_y, map_x), or (⌈n / every⌉, k, map_y, map_x).

    Example:
        >>> import torch
        >>> frames = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
        >>> kernels = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1, 1)  # lags 0 and 1
        >>> correlate_in_time(frames, kernels).flatten().tolist()
        [12.0, 24.0]
    """
    lags = len(kernels)
    if lags == 1:
        return correlate(frames[::every], kernels[0], stride)
    images = histories(frames, lags, every)  # a view
    if every > 1 or _prefers_spectra(images, kernels.transpose(0, 1), stride):
        # The frames of a history become the channels of one image.
        stacked = kernels.flip(0).transpose(0, 1).flatten(1, 2)
        return correlate(images.flatten(1, 2), stacked, stride)
    if _prefers_convolution(frames, kernels, DENSE_ADVANTAGE_IN_TIME):
        product = conv2d(frames, kernels.flatten(0, 1), stride=stride)
        return sum_over_lags(product.unflatten(1, kernels.shape[:2]), lags)
    placed = _placed(kernels.flatten(0, 1), frames.shape[-2:], stride)
    matrix = placed.flatten(3).unflatten(0, kernels.shape[:2])  # (lag, k, map_y, map_x, field)
    matrix = matrix.flip(0).permute(0, 4, 1, 2, 3).flatten(2).flatten(0, 1)
    # Every lags-th window begins where the previous one ends, so these windows are the rows of a
    # matrix that is a view of the frames, without a copy.
    n, field = len(frames) - lags + 1, frames[0].numel()
    rows = -(-n // lags)
    movie = pad(frames.flatten(1), (0, 0, 0, rows * lags - n)).flatten()
    products = [
        movie[first * field : (rows * lags + first) * field].view(rows, -1) @ matrix
        for first in range(lags)
    ]
    map_y, map_x = placed.shape[1:3]
    return torch.stack(products, 1).flatten(0, 1)[:n].view(n, -1, map_y, map_x)


def _prefers_convolution(frames: Tensor, kernels: Tensor, advantage: float) -> bool:
    field, kernel = frames.shape[-2:].numel(), kernels.shape[-2:].numel()
    return frames.is_cuda or field > advantage * kernel


def _prefers_spectra(frames: Tensor, kernels: Tensor, stride: int) -> bool:
    """Of frames (n, ..., y, x) and kernels (k, ..., y, x), with the same channels and lags."""
    n, k, field = len(frames), len(kernels), frames.shape[-2:]
    channels = frames.shape[1:-2].numel()
    places = [a - b + 1 for a, b in zip(field, kernels.shape[-2:], strict=True)]
    products = n * kernels.numel() * places[0] * places[1]
    transformed = (n * channels + n * k + k * channels) * field.numel()
    return stride == 1 and not frames.is_cuda and products > FOURIER_WORK * transformed


def _prefers_transform(frames: Tensor, kernels: Tensor, stride: int) -> bool:
    few, one_channel = len(kernels) <= FOURIER_FILTERS, frames.shape[1] == 1
    large = kernels.shape[-2:].numel() >= FOURIER_AREA
    return few and one_channel and large and stride == 1 and not frames.is_cuda


def _by_transform(frames: Tensor, kernels: Tensor) -> Tensor:
    """By Fourier transforms. Where the kernel is inside the field, there is no wrap-around."""
    field = frames.shape[-2:]
    turned = torch.fft.rfft2(kernels[:, 0], s=field).conj()
    product = torch.fft.irfft2(torch.fft.rfft2(frames) * turned, s=field)
    height, width = (a - b + 1 for a, b in zip(field, kernels.shape[-2:], strict=True))
    return product[..., :height, :width]


def _placed(kernels: Tensor, field: tuple[int, ...], stride: int) -> Tensor:
    """Kernels (k, channel, y, x) at each position: (k, map_y, map_x, channel, y, x)."""
    (height, width), (size_y, size_x) = field, kernels.shape[-2:]
    room_y, room_x = height - size_y, width - size_x
    before_y, before_x = room_y // stride * stride, room_x // stride * stride
    # A window of the size of the field that moves over the padded kernel contains the kernel at
    # each position in turn, the last one first.
    canvas = pad(kernels, (before_x, room_x, before_y, room_y))
    windows = canvas.unfold(2, height, stride).unfold(3, width, stride).flip(2, 3)
    return windows.permute(0, 2, 3, 1, 4, 5)
