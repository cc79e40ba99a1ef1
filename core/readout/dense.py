"""The readout as matrix products, a piece of the batch at a time.

The features under each mask, (batch, channel, neuron), would be the largest array by far. They are
made for a piece of the batch that stays in the cache, and made again for the gradients.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WORKSPACE = 16 * 2**20
"""Bytes of features under masks at a time."""


@torch.library.custom_op("retinakit::dense_readout", mutates_args=())
def dense_readout(features: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Σ_k weight[k, n] · Σ_p features[b, k, p] · mask[p, n], (batch, neuron)."""
    features = features.contiguous()
    out = features.new_empty(len(features), mask.shape[1])
    for piece, under in _pieces(features, mask):
        torch.mm(features[piece].flatten(0, 1), mask, out=under.flatten(0, 1))
        torch.sum(under.mul_(weight), 1, out=out[piece])
    return out


@dense_readout.register_fake
def _(features: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    return features.new_empty(features.shape[0], mask.shape[1])


@torch.library.custom_op("retinakit::dense_readout_backward", mutates_args=())
def dense_readout_backward(
    gradient: Tensor, features: Tensor, mask: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of features, mask and weight; an empty tensor for one that is not needed."""
    features = features.contiguous()
    of_features, of_mask, of_weight = empty_gradients([features, mask, weight], needed)
    of_mask.zero_()
    of_weight.zero_()
    for piece, under in _pieces(features, mask):
        part, of_output = features[piece], gradient[piece, None]
        if needed[2]:
            torch.mm(part.flatten(0, 1), mask, out=under.flatten(0, 1))
            of_weight += under.mul_(of_output).sum(0)
        if needed[0] or needed[1]:
            torch.mul(of_output, weight, out=under)
        if needed[0]:
            torch.mm(under.flatten(0, 1), mask.T, out=of_features[piece].flatten(0, 1))
        if needed[1]:
            of_mask.addmm_(part.flatten(0, 1).T, under.flatten(0, 1))
    return of_features, of_mask, of_weight


@dense_readout_backward.register_fake
def _(
    gradient: Tensor, features: Tensor, mask: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients([features, mask, weight], needed)


def empty_gradients(
    inputs: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of three inputs, and none for one that is not needed."""
    a, b, c = (
        torch.empty(tensor.shape if need else 0, dtype=tensor.dtype, device=tensor.device)
        for tensor, need in zip(inputs, needed, strict=True)
    )
    return a, b, c


def where_needed(gradients: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """None for the gradients that are not needed."""
    return tuple(g if need else None for g, need in zip(gradients, needed, strict=True))


def pieces(features: Tensor, neurons: int) -> Iterator[slice]:
    """Consecutive parts of the batch whose (sample, channel, neuron) fit the workspace."""
    sample = features.shape[1] * neurons * features.element_size()
    size = max(1, WORKSPACE // max(1, sample))
    for start in range(0, len(features), size):
        yield slice(start, min(start + size, len(features)))


def _pieces(features: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The pieces, with room for what is under the masks there."""
    room = features.new_empty(0)
    for piece in pieces(features, mask.shape[1]):
        samples = piece.stop - piece.start
        if not len(room):
            room = features.new_empty(samples, features.shape[1], mask.shape[1])
        yield piece, room[:samples]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad
    gradients = dense_readout_backward(gradient, *ctx.saved_tensors, needed)
    return where_needed(gradients, needed)


dense_readout.register_autograd(_backward, setup_context=_keep)
