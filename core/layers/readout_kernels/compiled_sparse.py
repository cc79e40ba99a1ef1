"""The sparse readout in compiled kernels. All tensors are contiguous here."""

import torch
from torch import Tensor

from retinakit.kernels import compiled
from retinakit.layers.readout_kernels.support import Slots


def serves(features: Tensor) -> bool:
    """Whether the compiled kernels support the device and the dtype of the features."""
    if compiled is None:
        return False
    return features.device.type == "cpu" and features.dtype == torch.float32


def read(features: Tensor, slots: Slots) -> Tensor:
    """The output (batch, neuron)."""
    assert compiled is not None
    out = features.new_empty(len(features), len(slots.neuron))
    compiled.readout(
        (*features.shape, len(slots.neuron)),
        features.data_ptr(),
        _by_slot(slots),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def slot_gradients(
    gradient: Tensor, features: Tensor, slots: Slots, of_values: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the values (entry,) and of the weights (channel, neuron), if requested."""
    assert compiled is not None
    values = torch.empty_like(slots.values) if of_values else slots.values.new_empty(0)
    weight = torch.empty_like(slots.weight)
    compiled.readout_slot_gradients(
        (*features.shape, len(slots.neuron)),
        features.data_ptr(),
        _by_slot(slots),
        gradient.data_ptr(),
        values.data_ptr(),
        weight.data_ptr(),
        torch.get_num_threads(),
    )
    return values, weight if of_weight else weight.new_empty(0)


def feature_gradient(gradient: Tensor, features: Tensor, slots: Slots) -> Tensor:
    """The gradient of the features (batch, channel, position)."""
    assert compiled is not None
    out = torch.empty_like(features)
    compiled.readout_feature_gradient(
        (*features.shape, len(slots.neuron)),
        _by_position(slots),
        gradient.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _by_slot(s: Slots) -> list[int]:
    arrays = (s.start, s.position, s.values, s.by_slot, s.weight, s.neuron)
    return [array.data_ptr() for array in arrays]


def _by_position(s: Slots) -> list[int]:
    start, index, values, weight, neuron = (
        array.data_ptr() for array in (s.position_start, s.slot, s.values, s.weight, s.neuron)
    )
    return [start, index, values, 0, weight, neuron]
