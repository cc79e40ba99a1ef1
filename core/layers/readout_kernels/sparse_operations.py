"""The readout on the nonzero entries of the masks, as differentiable torch operations."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from retinakit.layers.readout_kernels import compiled_sparse, cuda_sparse, torch_sparse
from retinakit.layers.readout_kernels.dense_products import empty_gradients, where_needed
from retinakit.layers.readout_kernels.support import Slots

_STRUCTURE = (
    "Tensor position_start, Tensor slot, Tensor start, Tensor position, Tensor by_slot, "
    "Tensor neuron, Tensor block_place, Tensor block_start, Tensor block_position"
)
"""`Support.structure` as single tensors, because a list of tensors is slower in torch."""

_INPUTS = f"Tensor features, Tensor values, Tensor weight, {_STRUCTURE}"


def _serving(features: Tensor) -> ModuleType:
    """The implementation for the device and the dtype of the features."""
    for module in (compiled_sparse, cuda_sparse):
        if module.serves(features):
            return module
    return torch_sparse


@torch.library.custom_op(
    "retinakit::sparse_readout", mutates_args=(), schema=f"({_INPUTS}) -> Tensor"
)
def sparse_readout(features: Tensor, values: Tensor, weight: Tensor, *structure: Tensor) -> Tensor:
    """Like `dense_readout`, with masks given by their values (entry,) and `Support.structure`."""
    return _serving(features).read(features.contiguous(), Slots.of(values, weight, structure))


@sparse_readout.register_fake
def _(features: Tensor, values: Tensor, weight: Tensor, *structure: Tensor) -> Tensor:
    return features.new_empty(features.shape[0], weight.shape[1])


@torch.library.custom_op(
    "retinakit::sparse_readout_backward",
    mutates_args=(),
    schema=f"(bool[] needed, Tensor gradient, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def sparse_readout_backward(
    needed: Sequence[bool],
    gradient: Tensor,
    features: Tensor,
    values: Tensor,
    weight: Tensor,
    *structure: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of features, values and weight; an empty tensor where it is not needed."""
    serving = _serving(features)
    slots = Slots.of(values, weight, structure)
    features, gradient = features.contiguous(), gradient.contiguous()
    of_features, of_values, of_weight = (t.new_empty(0) for t in (features, values, weight))
    if needed[1] or needed[2]:
        of_values, of_weight = serving.slot_gradients(gradient, features, slots, *needed[1:])
    if needed[0]:
        of_features = serving.feature_gradient(gradient, features, slots)
    return of_features, of_values, of_weight


@sparse_readout_backward.register_fake
def _(needed: Sequence[bool], gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(inputs[:3], needed)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    needed, saved = ctx.needs_input_grad[:3], ctx.saved_tensors
    gradients = sparse_readout_backward(needed, gradient, *saved)
    return *where_needed(gradients, needed), *[None] * len(saved[3:])


sparse_readout.register_autograd(_backward, setup_context=_keep)
