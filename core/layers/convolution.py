"""Convolutions of stimuli with filters, "valid", by the way that is fastest where it is taken."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from retinakit.layers.lags import histories, sum_over_lags

DENSE_ADVANTAGE = 3.0
"""Up to this ratio of the field to the filter's area, a convolution is taken as a product."""

FOURIER_AREA = 49
"""Filters of this area, or larger, on one channel are taken by Fourier transform if few."""

FOURIER_FILTERS = 8
"""So few; a transform back for each is then less than a convolution."""


def correlate(frames: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """Convolution of frames (n, channel, y, x) with kernels (k, channel, y, x), "valid".

    On a field not much larger than the kernels it is one product with the kernels written into a
    matrix, and with few large kernels on one channel a product of Fourier transforms: torch's
    convolution takes several times as long there on a CPU.
    """
    if _prefers_convolution(frames, kernels):
        if _prefers_transform(frames, kernels, stride):
            return _by_transform(frames, kernels)
        return conv2d(frames, kernels, stride=stride)
    placed = _placed(kernels, frames.shape[-2:], stride)  # (k, map_y, map_x, channel, y, x)
    product = frames.flatten(1) @ placed.flatten(3).flatten(0, 2).T
    return product.view(-1, *placed.shape[:3])


def correlate_in_time(frames: Tensor, kernels: Tensor, stride: int = 1, every: int = 1) -> Tensor:
    """The same in space and time: kernels (lag, k, channel, y, x), to (n - lags + 1, k, y, x).

    With `every`, only each `every`-th frame of the result, from the first on.
    """
    lags = len(kernels)
    if lags == 1:
        return correlate(frames[::every], kernels[0], stride)
    if every > 1:  # the frames of a history are then the channels of one image
        images = histories(frames, lags, every).flatten(1, 2)
        return correlate(images, kernels.flip(0).transpose(0, 1).flatten(1, 2), stride)
    if _prefers_convolution(frames, kernels):
        product = conv2d(frames, kernels.flatten(0, 1), stride=stride)
        return sum_over_lags(product.unflatten(1, kernels.shape[:2]), lags)
    placed = _placed(kernels.flatten(0, 1), frames.shape[-2:], stride)
    matrix = placed.flatten(3).unflatten(0, kernels.shape[:2])  # (lag, k, map_y, map_x, field)
    matrix = matrix.flip(0).permute(0, 4, 1, 2, 3).flatten(2).flatten(0, 1)
    # Every lags-th window begins where the one before ends, so that these windows are the rows of a
    # matrix in the memory of the frames: no window is copied.
    n, field = len(frames) - lags + 1, frames[0].numel()
    rows = -(-n // lags)
    movie = pad(frames.flatten(1), (0, 0, 0, rows * lags - n)).flatten()
    products = [
        movie[first * field : (rows * lags + first) * field].view(rows, -1) @ matrix
        for first in range(lags)
    ]
    map_y, map_x = placed.shape[1:3]
    return torch.stack(products, 1).flatten(0, 1)[:n].view(n, -1, map_y, map_x)


def _prefers_convolution(frames: Tensor, kernels: Tensor) -> bool:
    field, kernel = frames.shape[-2:].numel(), kernels.shape[-2:].numel()
    return frames.is_cuda or field > DENSE_ADVANTAGE * kernel


def _prefers_transform(frames: Tensor, kernels: Tensor, stride: int) -> bool:
    few, one_channel = len(kernels) <= FOURIER_FILTERS, frames.shape[1] == 1
    large = kernels.shape[-2:].numel() >= FOURIER_AREA
    return few and one_channel and large and stride == 1 and not frames.is_cuda


def _by_transform(frames: Tensor, kernels: Tensor) -> Tensor:
    """The places where the kernel lies within the field have nothing of its periodic images."""
    field = frames.shape[-2:]
    turned = torch.fft.rfft2(kernels[:, 0], s=field).conj()
    product = torch.fft.irfft2(torch.fft.rfft2(frames) * turned, s=field)
    height, width = (a - b + 1 for a, b in zip(field, kernels.shape[-2:], strict=True))
    return product[..., :height, :width]


def _placed(kernels: Tensor, field: tuple[int, ...], stride: int) -> Tensor:
    """Kernels (k, channel, y, x) at each place of the field: (k, map_y, map_x, channel, y, x)."""
    (height, width), (size_y, size_x) = field, kernels.shape[-2:]
    room_y, room_x = height - size_y, width - size_x
    before_y, before_x = room_y // stride * stride, room_x // stride * stride
    # A window of the field's size that moves over the kernel shows it at the places in turn, the
    # last one first.
    canvas = pad(kernels, (before_x, room_x, before_y, room_y))
    windows = canvas.unfold(2, height, stride).unfold(3, width, stride).flip(2, 3)
    return windows.permute(0, 2, 3, 1, 4, 5)
