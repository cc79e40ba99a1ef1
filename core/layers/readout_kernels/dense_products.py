"""The readout as matrix products, in a bounded workspace.

The masked features (batch, channel, neuron), Σ_p features[b, k, p] · mask[p, n], are by far the
largest array. If they fit into the workspace, they are stored for the backward pass. Otherwise they
are computed for one piece of the batch at a time and not recomputed in the backward pass on a CPU:
there, the gradients of masks and weights are computed from the product of the features and the
gradient of the output, one channel at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WORKSPACE = 16 * 2**20
"""Maximum size of the masked features in memory, in bytes."""

BLOCK = 288, 512
"""Positions and neurons of a block of the product of features and gradient; it nearly fills the L2
cache."""


def dense_readout(features: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Σ_k weight[k, n] · Σ_p features[b, k, p] · mask[p, n], (batch, neuron)."""
    keep = torch.is_grad_enabled() and weight.requires_grad
    out, _ = dense_forward(features, mask, weight, keep)
    return out


@torch.library.custom_op("retinakit::dense_readout", mutates_args=())
def dense_forward(
    features: Tensor, mask: Tensor, weight: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """The output, and the masked features (batch, channel, neuron).

    The latter are an empty tensor unless `keep` is set and they fit into the workspace.
    """
    features = features.contiguous()
    kept = keep and _fits(features, mask)
    out = features.new_empty(len(features), mask.shape[1])
    under = features.new_empty((*features.shape[:2], mask.shape[1]) if kept else 0)
    for piece, room in _pieces(features, mask):
        product = under[piece] if kept else room
        torch.mm(features[piece].flatten(0, 1), mask, out=product.flatten(0, 1))
        torch.sum(torch.mul(product, weight, out=room), 1, out=out[piece])
    return out, under


@dense_forward.register_fake
def _(features: Tensor, mask: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    kept = keep and _fits(features, mask)
    under = features.new_empty((*features.shape[:2], mask.shape[1]) if kept else 0)
    return features.new_empty(features.shape[0], mask.shape[1]), under


@torch.library.custom_op("retinakit::dense_readout_backward", mutates_args=())
def dense_readout_backward(
    gradient: Tensor,
    features: Tensor,
    mask: Tensor,
    weight: Tensor,
    under: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of features, mask and weight; an empty tensor where it is not needed."""
    features = features.contiguous()
    of_features, of_mask, of_weight = empty_gradients([features, mask, weight], needed)
    of_mask.zero_()
    of_weight.zero_()
    by_channel = needed[2] and not (len(under) or features.is_cuda)
    if by_channel:
        _by_channel(gradient, features, mask, weight, of_mask, of_weight, needed)
    by_piece = [needed[0], *(need and not by_channel for need in needed[1:])]
    if not any(by_piece):
        return of_features, of_mask, of_weight
    for piece, room in _pieces(features, mask):
        part, of_output = features[piece], gradient[piece, None]
        if by_piece[2]:
            if len(under):
                torch.mul(under[piece], of_output, out=room)
            else:
                torch.mm(part.flatten(0, 1), mask, out=room.flatten(0, 1))
                room.mul_(of_output)
            of_weight += room.sum(0)
        if by_piece[0] or by_piece[1]:
            torch.mul(of_output, weight, out=room)
        if by_piece[0]:
            torch.mm(room.flatten(0, 1), mask.T, out=of_features[piece].flatten(0, 1))
        if by_piece[1]:
            of_mask.addmm_(part.flatten(0, 1).T, room.flatten(0, 1))
    return of_features, of_mask, of_weight


@dense_readout_backward.register_fake
def _(
    gradient: Tensor,
    features: Tensor,
    mask: Tensor,
    weight: Tensor,
    under: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients([features, mask, weight], needed)


def _by_channel(
    gradient: Tensor,
    features: Tensor,
    mask: Tensor,
    weight: Tensor,
    of_mask: Tensor,
    of_weight: Tensor,
    needed: Sequence[bool],
) -> None:
    """Adds to the gradients of mask and weight, one channel at a time.

    With t[k, p, n] = Σ_b features[b, k, p] · gradient[b, n], the gradient of the mask is
    Σ_k weight[k, n] · t[k, p, n], and that of the weight is Σ_p mask[p, n] · t[k, p, n].
    """
    room = gradient.new_empty(min(BLOCK[0] * BLOCK[1], mask.numel()))
    for row in range(0, mask.shape[0], BLOCK[0]):
        for column in range(0, mask.shape[1], BLOCK[1]):
            rows, columns = slice(row, row + BLOCK[0]), slice(column, column + BLOCK[1])
            here = mask[rows, columns]
            product = room[: here.numel()].view(here.shape)
            for channel in range(len(weight)):
                torch.mm(features[:, channel, rows].T, gradient[:, columns], out=product)
                if needed[1]:
                    of_mask[rows, columns].addcmul_(product, weight[channel, columns])
                if needed[2]:
                    of_weight[channel, columns] += product.mul_(here).sum(0)


def empty_gradients(
    inputs: Sequence[Tensor], needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised tensors for the gradients of three inputs; empty where it is not needed."""
    a, b, c = (
        torch.empty(tensor.shape if need else 0, dtype=tensor.dtype, device=tensor.device)
        for tensor, need in zip(inputs, needed, strict=True)
    )
    return a, b, c


def where_needed(gradients: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Replaces gradients that are not needed by None."""
    return tuple(g if need else None for g, need in zip(gradients, needed, strict=True))


def pieces(features: Tensor, neurons: int) -> Iterator[slice]:
    """Consecutive parts of the batch whose masked features fit into the workspace."""
    sample = features.shape[1] * neurons * features.element_size()
    size = max(1, WORKSPACE // max(1, sample))
    for start in range(0, len(features), size):
        yield slice(start, min(start + size, len(features)))


class _GradientOfMask(torch.autograd.Function):
    """See `with_gradient_of_mask`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, features: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, mask, weight)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, mask, weight = ctx.saved_tensors
        nothing, needed = features.new_empty(0), (False, True, False)
        of_mask = dense_readout_backward(
            gradient, features, mask.to(features.dtype), weight.to(features.dtype), nothing, needed
        )[1]
        return gradient, None, of_mask.to(mask.dtype), None


def with_gradient_of_mask(out: Tensor, features: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Adds the dense gradient of the mask to an output that was computed without it."""
    found: Tensor = _GradientOfMask.apply(out, features, mask, weight)
    return found


def _fits(features: Tensor, mask: Tensor) -> bool:
    samples, channels, _ = features.shape
    return samples * channels * mask.shape[1] * features.element_size() <= WORKSPACE


def _pieces(features: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The pieces of the batch, each with a buffer for its masked features."""
    room = features.new_empty(0)
    for piece in pieces(features, mask.shape[1]):
        samples = piece.stop - piece.start
        if not len(room):
            room = features.new_empty(samples, features.shape[1], mask.shape[1])
        yield piece, room[:samples]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    gradients = dense_readout_backward(gradient, *ctx.saved_tensors, needed)
    return *where_needed(gradients, needed), None


dense_forward.register_autograd(_backward, setup_context=_keep)
