"""Convolutions of many channels with many large kernels, as products of Fourier transforms."""

import ctypes
import sys
from collections.abc import Iterator
from functools import cache
from math import ceil
from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 64 << 20
"""Size of the spectra of a block of images, for spectra that are not kept. Blocks are written into
the same memory one after the other, because new memory takes as much time as a transform."""

CACHED_VALUES = 1 << 16
"""Number of values of the spectra that are transformed at once, if an image has fewer."""

MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` in the GNU C library."""

KEPT_BYTES = 2**31 - 1
"""Memory that the process keeps after it is freed, and the size of an array up to which it does."""


def correlate_by_transform(frames: Tensor, kernels: Tensor) -> Tensor:
    """Convolves frames with kernels, "valid" and without flipping the kernels, on a CPU.

    At each frequency, the spectra of the maps are a matrix product of the spectra of the frames
    (n, channel) and of the kernels (channel, k). The gradients of both arguments are convolutions
    too, and use the spectra of the forward pass, which are kept. There are no second derivatives.

    Args:
        frames: (n, channel, y, x), at least one.
        kernels: (k, channel, kernel_y, kernel_x), not larger than the frames.

    Returns:
        (n, k, map_y, map_x), as `correlate`.

    Example:
        >>> import torch
        >>> frames = torch.arange(9.0).view(1, 1, 3, 3)
        >>> correlate_by_transform(frames, torch.ones(1, 1, 2, 2)).round().tolist()
        [[[[8.0, 12.0], [20.0, 24.0]]]]
    """
    learned, passed = (torch.is_grad_enabled() and x.requires_grad for x in (kernels, frames))
    if learned or passed:
        _keep_memory()
    maps: Tensor = _Correlation.apply(frames, kernels, learned, passed)[0]
    return maps


@cache
def _keep_memory() -> None:
    """Lets the process keep freed memory for the next arrays, where the C library is GNU's.

    Otherwise large arrays are returned to the system, which takes 3 of the 7 s of a training step
    of the networks of Zheng et al. (2021) to make 3 GB of new memory.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(MALLOC_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(MALLOC_MMAP_THRESHOLD, KEPT_BYTES)


class _Correlation(torch.autograd.Function):
    # With * for a full convolution, ~ for a flip, and g for the gradient of the maps:
    #     maps = (x * ~k)[kernel - 1:],  gradient of k = (x * ~g)[map - 1:],
    #     gradient of x = ~(~k * ~g).
    # Transforms of the size of the field suffice: only values that are cropped wrap around.

    @staticmethod
    def forward(
        frames: Tensor, kernels: Tensor, learned: bool, passed: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Maps, spectra of the frames for the gradient of the kernels, and the other way round."""
        field, kernel = frames.shape[-2:], kernels.shape[-2:]
        height, width = (a - b + 1 for a, b in zip(field, kernel, strict=True))
        maps = frames.new_empty(len(frames), len(kernels), height, width)
        grid = _Grid(field, maps.dtype)
        filters = grid.spectra(kernels, flip=True)
        kept = grid.empty(len(frames), frames.shape[1]) if learned else None
        products = grid.empty(0, len(kernels))
        for block in grid.blocks(len(frames), len(kernels)):
            spectra = grid.spectra(frames[block], None if kept is None else kept[block])
            if len(products) < len(spectra):
                products = grid.empty(len(spectra), len(kernels))
            product = products[: len(spectra)]
            torch.bmm(
                spectra.transpose(0, 1), filters.permute(1, 2, 0), out=product.transpose(0, 1)
            )
            grid.images(product, maps[block], [k - 1 for k in kernel])
        return maps, kept, filters if passed else None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        frames, kernels, *_ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(kept for kept in output[1:] if kept is not None))
        ctx.save_for_backward(*output[1:])
        ctx.frames, ctx.kernels = frames.shape, kernels.shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None
        frames, filters = ctx.saved_tensors
        n, channels, *field = ctx.frames
        grid = _Grid(field, gradient.dtype)
        of_frames = None if filters is None else gradient.new_empty(ctx.frames)
        products = grid.empty(0, channels)
        summed = None if frames is None else grid.empty(ctx.kernels[0], channels).transpose(0, 1)
        for block in grid.blocks(n, max(ctx.kernels[0], channels)):
            spectra = grid.spectra(gradient[block], flip=True)
            if summed is not None:
                summed.baddbmm_(
                    spectra.permute(1, 2, 0),
                    frames[block].transpose(0, 1),
                    beta=0 if block.start == 0 else 1,
                )
            if of_frames is not None:
                if len(products) < len(spectra):
                    products = grid.empty(len(spectra), channels)
                product = products[: len(spectra)]
                torch.bmm(
                    spectra.transpose(0, 1), filters.transpose(0, 1), out=product.transpose(0, 1)
                )
                grid.images(product, of_frames[block], (0, 0), flip=True)
        of_kernels = None
        if summed is not None:
            of_kernels = gradient.new_empty(ctx.kernels)
            first = [size - 1 for size in gradient.shape[-2:]]
            grid.images(summed.transpose(0, 1), of_kernels, first)
        return of_frames, of_kernels, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], frames: Tensor, kernels: Tensor, *_: Any
    ) -> tuple[tuple[Tensor, None, None], tuple[int, None, None]]:
        """One convolution after the other."""
        each = [
            [x] * info.batch_size if dim is None else x.unbind(dim)
            for x, dim in zip((frames, kernels), in_dims, strict=False)
        ]
        maps = torch.stack([correlate_by_transform(*pair) for pair in zip(*each, strict=True)])
        return (maps, None, None), (0, None, None)


class _Grid:
    """Transforms between images (n, channel, y, x) and their spectra (n, frequency, channel)."""

    def __init__(self, field: Any, dtype: torch.dtype):
        # Factors of up to 11, for which the transforms are fast.
        self.height, self.width = (next_fast_len(size) for size in field)
        self.frequencies = self.height * (self.width // 2 + 1)
        self.dtype = dtype.to_complex()

    def empty(self, n: int, channels: int) -> Tensor:
        return torch.empty(n, self.frequencies, channels, dtype=self.dtype)

    def blocks(self, n: int, channels: int) -> Iterator[slice]:
        """Equal parts of n images, whose spectra have at most BLOCK_BYTES if possible."""
        size = self.frequencies * channels * self.dtype.itemsize
        step = ceil(n / min(n, ceil(n * size / BLOCK_BYTES)))
        return (slice(first, first + step) for first in range(0, n, step))

    def spectra(self, images: Tensor, out: Tensor | None = None, flip: bool = False) -> Tensor:
        """The spectra of the images, optionally flipped."""
        if out is None:
            out = self.empty(*images.shape[:2])
        for part, spectrum in self.parts(images, out, images.shape[1]):
            channels = part.flip(-2, -1) if flip else part
            transformed = torch.fft.rfft2(channels, s=(self.height, self.width))
            spectrum.copy_(_transposed(transformed.flatten(2)))
        return out

    def images(self, spectra: Tensor, out: Tensor, first: Any, flip: bool = False) -> None:
        """Writes the parts of the images of the size of `out` that begin at `first`."""
        (top, left), (height, width) = first, out.shape[-2:]
        for spectrum, part in self.parts(spectra, out, out.shape[1]):
            columns = _transposed(spectrum).unflatten(2, (self.height, -1))
            rows = torch.fft.ifft(columns, dim=2)[:, :, top : top + height]
            cropped = torch.fft.irfft(rows, n=self.width)[..., left : left + width]
            part.copy_(cropped.flip(2, 3) if flip else cropped)

    def parts(self, source: Tensor, out: Tensor, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of images and of their spectra, or the other way round, that fit a cache."""
        count = max(1, CACHED_VALUES // (self.frequencies * channels))
        return zip(source.split(count), out.split(count), strict=True)


def _transposed(matrices: Tensor) -> Tensor:
    """The transposes (n, b, a) of matrices (n, a, b), in contiguous memory."""
    if len(matrices) == 1:  # torch is fastest at a whole matrix
        return matrices[0].T.contiguous()[None]
    return matrices.mT.contiguous()
