"""The sparse readout in compiled kernels. All tensors are contiguous here."""

import torch
from torch import Tensor

from retinakit.kernels import compiled
from retinakit.readout.support import Slots


def serves(features: Tensor) -> bool:
    """Whether there are kernels for the device and the type of these features."""
    if compiled is None:
        return False
    return features.device.type == "cpu" and features.dtype == torch.float32


def read(features: Tensor, slots: Slots) -> Tensor:
    """The output (batch, neuron)."""
    assert compiled is not None
    masks = slots.values_by_slot()
    out = features.new_empty(len(features), len(slots.neuron))
    compiled.readout(
        (*features.shape, len(slots.neuron)),
        features.data_ptr(),
        _addresses(slots.start, slots.position, masks, slots.weight, slots.neuron),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def slot_gradients(
    gradient: Tensor, features: Tensor, slots: Slots, of_values: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the values (entry,), if wanted, and of the weights (slot, channel)."""
    assert compiled is not None
    masks = slots.values_by_slot()
    values = torch.empty_like(masks) if of_values else masks.new_empty(0)
    weight = torch.empty_like(slots.weight)
    compiled.readout_slot_gradients(
        (*features.shape, len(slots.neuron)),
        features.data_ptr(),
        _addresses(slots.start, slots.position, masks, slots.weight, slots.neuron),
        gradient.data_ptr(),
        values.data_ptr(),
        weight.data_ptr(),
        torch.get_num_threads(),
    )
    return slots.by_entry(values) if of_values else values, weight


def feature_gradient(gradient: Tensor, features: Tensor, slots: Slots) -> Tensor:
    """The gradient of the features (batch, channel, position)."""
    assert compiled is not None
    out = torch.empty_like(features)
    compiled.readout_feature_gradient(
        (*features.shape, len(slots.neuron)),
        _addresses(slots.position_start, slots.slot, slots.values, slots.weight, slots.neuron),
        gradient.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
