"""The sparse readout in torch, for devices and dtypes without a compiled kernel."""

from functools import cache
from logging import getLogger

import torch
from torch import Tensor

from retinakit.kernels import compiled
from retinakit.layers.readout_kernels.dense_products import WORKSPACE, pieces
from retinakit.layers.readout_kernels.support import Slots


@cache
def _tell() -> None:
    if compiled is None:
        getLogger("retinakit").warning(
            "the compiled kernels are not installed; the sparse readout runs in torch, which is "
            "slower; see `retina-run doctor`"
        )


def read(features: Tensor, slots: Slots) -> Tensor:
    """The output (batch, neuron)."""
    _tell()
    out = features.new_empty(len(features), len(slots.neuron))
    weight = slots.weight_by_slot()
    for piece in pieces(features, len(slots.neuron)):
        out[piece, slots.neuron] = (_under(features[piece], slots) * weight[:, None]).sum(2).T
    return out


def slot_gradients(
    gradient: Tensor, features: Tensor, slots: Slots, of_values: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the values (entry,) and of the weights (channel, neuron), if requested."""
    weight = slots.weight_by_slot()
    values = torch.zeros_like(slots.values) if of_values else slots.values.new_empty(0)
    of_slots = torch.zeros_like(weight) if of_weight else weight.new_empty(0)
    slot_of = torch.arange(len(slots.neuron), device=gradient.device).repeat_interleave(
        slots.start.diff()
    )
    for piece in pieces(features, len(slots.neuron)):
        of_output = gradient[piece, slots.neuron].T
        if of_weight:
            of_slots += (_under(features[piece], slots) * of_output[..., None]).sum(1)
        if of_values:
            columns = features[piece].flatten(0, 1).T.contiguous()
            outer = (of_output[..., None] * weight[:, None]).flatten(1)
            step = max(1, WORKSPACE // max(1, outer.shape[1] * outer.element_size()))
            for i in range(0, len(values), step):
                some = slice(i, i + step)
                values[some] += (columns[slots.position[some]] * outer[slot_of[some]]).sum(1)
    return (
        slots.by_entry(values) if of_values else values,
        slots.by_neuron(of_slots) if of_weight else of_slots,
    )


def feature_gradient(gradient: Tensor, features: Tensor, slots: Slots) -> Tensor:
    """The gradient of the features (batch, channel, position)."""
    out, weight = torch.empty_like(features), slots.weight_by_slot()
    for piece in pieces(features, len(slots.neuron)):
        of_output = gradient[piece, slots.neuron].T
        outer = (of_output[..., None] * weight[:, None]).flatten(1)
        columns = torch.sparse.mm(_masks(slots, features.shape[2]).T, outer)
        out[piece] = columns.T.view_as(out[piece])
    return out


def _masks(slots: Slots, positions: int) -> Tensor:
    """The masks as a sparse tensor (slot, position)."""
    number = len(slots.neuron)
    slot = torch.arange(number, device=slots.start.device).repeat_interleave(slots.start.diff())
    at = torch.stack([slot, slots.position.long()])
    values = slots.values_by_slot()
    return torch.sparse_coo_tensor(at, values, (number, positions), check_invariants=False)


def _under(features: Tensor, slots: Slots) -> Tensor:
    """The masked features, (slot, sample, channel)."""
    samples, channels, positions = features.shape
    columns = features.flatten(0, 1).T.contiguous()
    return torch.sparse.mm(_masks(slots, positions), columns).view(-1, samples, channels)
