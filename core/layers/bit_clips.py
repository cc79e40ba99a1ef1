"""Rectified filters in space and time of two-valued clips, which are held as bits.

The first layer of a network of clips has by far the most places. One kernel reads the bits, filters
them in space and in time with dropout after each, and rectifies. Neither the frames nor the
spatially filtered frames are held in memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retinakit.kernels import compiled


@dataclass(frozen=True)
class ClipSizes:
    """The sizes of the layer.

    Attributes:
        height, width: of a frame, in pixels.
        stride: in pixels.
        rows, columns: of the map, of which the first ones may be used only.
        first: the first frame of a clip whose output is returned.
    """

    height: int
    width: int
    stride: int
    rows: int
    columns: int
    first: int


def supports_bit_clips(bits: Tensor, space: Tensor, time: Tensor) -> bool:
    """Whether `filter_bit_clips` can be used here.

    Args:
        bits, space, time: as for `filter_bit_clips`.

    Example:
        >>> bits = torch.zeros(1, 5, 8, dtype=torch.uint8, device="meta")
        >>> supports_bit_clips(bits, torch.zeros(2, 1, 3, 3), torch.zeros(4, 2))
        False
    """
    if compiled is None or not hasattr(compiled, "filter_bit_clips"):
        return False
    on_cpu = bits.device.type == space.device.type == "cpu"
    single = space.dtype == time.dtype == torch.float32
    types, channels, _, side_x = space.shape
    fits = types <= compiled.clip_types and channels == 1 and side_x <= compiled.clip_widest
    short = max(len(time), bits.shape[1]) <= compiled.clip_longest
    return on_cpu and single and fits and short


def filter_bit_clips(
    bits: Tensor,
    values: Tensor,
    sizes: ClipSizes,
    space: Tensor,
    space_bias: Tensor,
    time: Tensor,
    time_bias: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """Filters clips in space, then in time with zeros before the first frame, and rectifies.

        out = ReLU(D'(time * D(space · clip + space_bias) + time_bias)),

    where D and D' are dropout, with masks that depend on the seed of torch.

    Args:
        bits: (clip, frame, byte) uint8; see `retinakit.contracts.Bits.packed`.
        values: (2,), of bit 0 and of bit 1.
        sizes: of the frames and of the map.
        space: (type, 1, y, x), at most 8 types.
        space_bias, time_bias: (type,).
        time: (lag, type), lag 0 first.
        dropout: the probability that a value is set to 0; others are divided by its complement,
            which is rounded to 1 / 65536.

    Returns:
        (clip, frame - first, type, row, column), with gradients of the filters and biases.

    Example:
        >>> if compiled is not None:
        ...     bits = torch.tensor([[[0b1010], [0b0001]]], dtype=torch.uint8)  # one clip
        ...     space, time = torch.ones(1, 1, 2, 2), torch.tensor([[1.0], [10.0]])
        ...     sizes = ClipSizes(height=2, width=2, stride=1, rows=1, columns=1, first=0)
        ...     zero, values = torch.zeros(1), torch.tensor([0.0, 1.0])
        ...     out = filter_bit_clips(bits, values, sizes, space, zero, time, zero)
        ...     assert out.flatten().tolist() == [2.0, 21.0]
    """
    below, seed = 65536, 0
    if dropout:
        below = max(1, round((1 - dropout) * 65536))
        seed = int(torch.randint(2**63 - 1, ()))
    low, high = values.tolist()
    out: Tensor = _FilterBitClips.apply(
        bits, low, high, sizes, below, seed, space, space_bias, time, time_bias
    )
    return out[..., : len(space)].permute(0, 1, 4, 2, 3)


class _FilterBitClips(torch.autograd.Function):
    """The filters, with the types as the last axis, of the number that the kernel has."""

    @staticmethod
    def forward(
        ctx: Any,
        bits: Tensor,
        low: float,
        high: float,
        sizes: ClipSizes,
        below: int,
        seed: int,
        *weights: Tensor,
    ) -> Tensor:
        assert compiled is not None
        filters = [_last(weight) for weight in weights]
        shape = (*bits.shape[:2], sizes.rows, sizes.columns, compiled.clip_types)
        out = torch.empty(shape[0], shape[1] - sizes.first, *shape[2:])
        ctx.job = _job(bits.contiguous(), low, high, sizes, filters, below, seed)
        compiled.filter_bit_clips(*ctx.job[1:], out.data_ptr(), torch.get_num_threads())
        ctx.save_for_backward(out)
        ctx.shapes = [weight.shape for weight in weights]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        assert compiled is not None
        (out,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        (_, *filters) = ctx.job[0]
        found = [torch.empty_like(weight) for weight in filters]
        compiled.bit_clips_gradients(
            *ctx.job[1:],
            out.data_ptr(),
            gradient.data_ptr(),
            [weight.data_ptr() for weight in found],
            torch.get_num_threads(),
        )
        of_weights = [
            _first(weight, shape) for weight, shape in zip(found, ctx.shapes, strict=True)
        ]
        return (*[None] * 6, *of_weights)


def _job(
    bits: Tensor,
    low: float,
    high: float,
    sizes: ClipSizes,
    filters: list[Tensor],
    below: int,
    seed: int,
) -> tuple[Any, ...]:
    """The tensors that are used, and the arguments of the kernel."""
    space, _, time, _ = filters
    clips = (bits.data_ptr(), *bits.shape, sizes.height, sizes.width, low, high)
    sides = (space.shape[0], space.shape[1], sizes.stride, len(time))
    part = (sizes.rows, sizes.columns, sizes.first)
    addresses = [weight.data_ptr() for weight in filters]
    return [bits, *filters], clips, addresses, [*sides, *part], (seed, below)


def _last(weight: Tensor) -> Tensor:
    """A weight with the types as the last axis, padded with 0."""
    assert compiled is not None
    if weight.ndim == 4:
        weight = weight.detach()[:, 0].movedim(0, -1)
    padded = torch.zeros(*weight.shape[:-1], compiled.clip_types)
    padded[..., : weight.shape[-1]] = weight.detach()
    return padded


def _first(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a weight of a shape, from that with the types last."""
    if len(shape) == 4:
        return gradient[..., : shape[0]].movedim(-1, 0)[:, None]
    return gradient[..., : shape[-1]]
