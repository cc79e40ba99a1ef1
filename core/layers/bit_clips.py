"""The first layers of a network of two-valued clips, which are held as bits.

The first layer has by far the most places. One kernel reads the bits, filters them in space and in
time with dropout after each, rectifies, and applies the spatial kernels of the next layers. Neither
the frames nor the output of the first layer are held in memory; they are computed again for the
gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retinakit.kernels import compiled
from retinakit.layers.dropout import parts_kept

WIDEST = 2**16
"""Largest width of a frame, whose columns the kernel numbers in 16 bits."""


@dataclass(frozen=True)
class ClipSizes:
    """The sizes of the layers.

    Attributes:
        height, width: of a frame, in pixels.
        stride: of the first layer, in pixels.
        pool_stride: of the next layers, in places of the first layer.
        firsts: for each of the next layers, the first frame of a clip that is returned.

    Example:
        >>> sizes = ClipSizes(height=255, width=255, stride=5, pool_stride=4, firsts=(0, 20))
    """

    height: int
    width: int
    stride: int
    pool_stride: int
    firsts: tuple[int, ...]


def supports_bit_clips(bits: Tensor, space: Tensor, time: Tensor, pools: Sequence[Tensor]) -> bool:
    """Whether `pool_bit_clips` can be used here.

    Args:
        bits, space, time, pools: as for `pool_bit_clips`.

    Example:
        >>> bits, space = torch.zeros(1, 5, 8, dtype=torch.uint8), torch.zeros(9, 1, 3, 3)
        >>> supports_bit_clips(bits, space, torch.zeros(4, 9), [])  # too many types
        False
    """
    if compiled is None or not hasattr(compiled, "pool_bit_clips"):
        return False
    weights = [space, time, *pools]
    on_cpu = all(one.device.type == "cpu" for one in (bits, *weights))
    single = all(weight.dtype == torch.float32 for weight in weights)
    types, channels, _, side_x = space.shape
    most = max([types, *map(len, pools)])
    fits = most <= compiled.clip_types and channels == 1 and side_x <= compiled.clip_widest
    short = max(len(time), bits.shape[1]) <= compiled.clip_longest
    alike = len({pool.shape[-2:] for pool in pools}) <= 1
    return on_cpu and single and fits and short and alike


def pool_bit_clips(
    bits: Tensor,
    values: Tensor,
    sizes: ClipSizes,
    space: Tensor,
    space_bias: Tensor,
    time: Tensor,
    time_bias: Tensor,
    pools: Sequence[Tensor],
    dropout: float = 0.0,
) -> list[Tensor]:
    """Filters clips in space, then in time, rectifies, and applies the kernels of the next layers.

        out_p = pool_p · ReLU(D'(time * D(space · clip + space_bias) + time_bias)),

    where the filters in time have zeros before the first frame, and D and D' are dropout, with
    masks that depend on the seed of torch.

    Args:
        bits: (clip, frame, byte) uint8; see `retinakit.contracts.Bits.packed`.
        values: (2,), of bit 0 and of bit 1.
        sizes: of the frames, and of the layers.
        space: (type, 1, y, x), at most 8 types.
        space_bias, time_bias: (type,).
        time: (lag, type), lag 0 first.
        pools: for each of the next layers, kernels (output, type, y, x) of the same size, at most 8
            outputs.
        dropout: the probability that a value is set to 0; others are divided by its complement,
            which is rounded to 1 / 65536.

    Returns:
        For each of the next layers, (clip, frame - first, output, row, column), with gradients of
        all weights.

    Raises:
        ValueError: if `supports_bit_clips` is false, or the shapes do not agree with the sizes.

    Example:
        >>> if compiled is not None:
        ...     bits = torch.tensor([[[0b1010], [0b0001]]], dtype=torch.uint8)  # one clip
        ...     space, time = torch.ones(1, 1, 2, 2), torch.tensor([[1.0], [10.0]])
        ...     sizes = ClipSizes(height=2, width=2, stride=1, pool_stride=1, firsts=(0,))
        ...     zero, pool = torch.zeros(1), torch.ones(1, 1, 1, 1)
        ...     values = torch.tensor([0.0, 1.0])
        ...     (out,) = pool_bit_clips(bits, values, sizes, space, zero, time, zero, [pool])
        ...     assert out.flatten().tolist() == [2.0, 21.0]
    """
    _check(bits, sizes, space, time, pools)
    seed = int(torch.randint(2**63 - 1, ())) if dropout else 0
    low, high = values.tolist()
    weights = space, space_bias, time, time_bias, *pools
    found = _PoolBitClips.apply(bits, low, high, sizes, (seed, parts_kept(dropout)), *weights)
    return [
        out[..., : len(pool)].permute(0, 3, 4, 1, 2) for out, pool in zip(found, pools, strict=True)
    ]


def _check(
    bits: Tensor, sizes: ClipSizes, space: Tensor, time: Tensor, pools: Sequence[Tensor]
) -> None:
    """Checks what the kernel relies on, which reads and writes by address."""
    if not supports_bit_clips(bits, space, time, pools) or bits.dtype != torch.uint8:
        raise ValueError("the kernel of clips cannot be used here; see supports_bit_clips")
    if sizes.width > WIDEST:
        raise ValueError(f"a frame has {sizes.width} columns, and at most {WIDEST} are possible")
    needed = -(-sizes.height * sizes.width // 8)
    if bits.shape[2] < needed:
        raise ValueError(
            f"a frame of {sizes.height} x {sizes.width} pixels needs {needed} bytes and has "
            f"{bits.shape[2]}"
        )
    if len(sizes.firsts) != len(pools) or not all(
        0 <= first < bits.shape[1] for first in sizes.firsts
    ):
        raise ValueError(
            f"'firsts' {sizes.firsts} needs a frame between 0 and {bits.shape[1] - 1} for each of "
            f"the {len(pools)} pools"
        )


class _PoolBitClips(torch.autograd.Function):
    """The layers, with the types as the last axis, of the number that the kernel has."""

    @staticmethod
    def forward(
        ctx: Any,
        bits: Tensor,
        low: float,
        high: float,
        sizes: ClipSizes,
        dropout: tuple[int, int],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        assert compiled is not None
        bits = bits.contiguous()
        padded = [_types_last(weight.detach(), weight is weights[0]) for weight in weights]
        space, _, time, _, *pools = padded
        sides, pool_sides = list(space.shape[:2]), list(pools[0].shape[:2])
        rows, columns = (
            ((pixels - side) // sizes.stride + 1 - pool_side) // sizes.pool_stride + 1
            for pixels, side, pool_side in zip(
                (sizes.height, sizes.width), sides, pool_sides, strict=True
            )
        )
        clips, frames, _ = bits.shape
        found = [
            torch.empty(
                (clips, rows, columns, frames - first, compiled.clip_types), dtype=torch.float32
            )
            for first in sizes.firsts
        ]
        ctx.held, ctx.shapes = (bits, padded), [weight.shape for weight in weights]
        ctx.job = (
            (bits.data_ptr(), *bits.shape, sizes.height, sizes.width, low, high),
            _addresses(padded),
            [*sides, sizes.stride, len(time)],
            [*pool_sides, sizes.pool_stride, rows, columns],
            sizes.firsts,
            dropout,
        )
        compiled.pool_bit_clips(*ctx.job, _addresses(found), torch.get_num_threads())
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        assert compiled is not None
        given = [gradient.contiguous() for gradient in gradients]
        found = [torch.empty_like(weight) for weight in ctx.held[1]]
        compiled.pool_bit_clips_gradients(
            *ctx.job, _addresses(given), _addresses(found), torch.get_num_threads()
        )
        of_weights = [
            _types_first(weight, shape) for weight, shape in zip(found, ctx.shapes, strict=True)
        ]
        return (*[None] * 5, *of_weights)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _types_last(weight: Tensor, of_stimulus: bool) -> Tensor:
    """A weight with the types as the last axes, padded with 0.

    Filters (type, 1, y, x) become (y, x, type), pools (output, type, y, x) become (y, x, type,
    output).
    """
    assert compiled is not None
    types = compiled.clip_types
    if weight.ndim < 4:
        padded = torch.zeros((*weight.shape[:-1], types), dtype=torch.float32)
        padded[..., : weight.shape[-1]] = weight
        return padded
    number, inputs, *sides = weight.shape
    padded = torch.zeros((*sides, 1 if of_stimulus else types, types), dtype=torch.float32)
    padded[:, :, :inputs, :number] = weight.permute(2, 3, 1, 0)
    return padded


def _types_first(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a weight of a shape, from that of `_types_last`."""
    if len(shape) < 4:
        return gradient[..., : shape[-1]]
    return gradient[:, :, : shape[1], : shape[0]].permute(3, 2, 0, 1)
