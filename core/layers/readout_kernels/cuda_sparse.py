"""The sparse readout in CUDA kernels. All tensors are contiguous here.

The kernels require that the batch is the last, contiguous axis: features are transposed before the
call, and their gradient after it.
"""

import torch
from torch import Tensor

from retinakit.kernels import compiled
from retinakit.layers.readout_kernels.support import Slots


def serves(features: Tensor) -> bool:
    """Whether the CUDA kernels support the device and the dtype of the features."""
    if compiled is None or not compiled.cuda or not features.is_cuda:
        return False
    return features.dtype in (torch.float32, torch.bfloat16)


def read(features: Tensor, slots: Slots) -> Tensor:
    """The output (batch, neuron)."""
    assert compiled is not None
    out = torch.zeros(len(features), len(slots.neuron), device=features.device)
    by_batch, masks = _by_batch(features), _Masks(slots)
    compiled.readout_on_gpu(
        _launch(features),
        (*features.shape, len(slots.neuron)),
        by_batch.data_ptr(),
        masks.by_slot(),
        out.data_ptr(),
    )
    return out.to(features.dtype)


def slot_gradients(
    gradient: Tensor, features: Tensor, slots: Slots, of_values: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the values (entry,) and of the weights (channel, neuron), if requested."""
    assert compiled is not None
    masks = _Masks(slots)
    values, weight = torch.zeros_like(masks.values), torch.zeros_like(masks.weight)
    by_batch, sample_slot = _by_batch(features), gradient.float().index_select(1, slots.neuron)
    where = _launch(features), (*features.shape, len(slots.neuron)), by_batch.data_ptr()
    if of_values:
        compiled.readout_mask_gradient_on_gpu(
            *where, masks.by_position(), sample_slot.data_ptr(), values.data_ptr()
        )
    if of_weight:
        slot_sample = sample_slot.T.contiguous()
        compiled.readout_weight_gradient_on_gpu(
            *where, masks.by_slot(), slot_sample.data_ptr(), weight.data_ptr()
        )
    return (
        values.to(slots.values.dtype) if of_values else values.new_empty(0),
        slots.by_neuron(weight.to(slots.weight.dtype)) if of_weight else weight.new_empty(0),
    )


def feature_gradient(gradient: Tensor, features: Tensor, slots: Slots) -> Tensor:
    """The gradient of the features (batch, channel, position)."""
    assert compiled is not None
    samples, channels, positions = features.shape
    masks = _Masks(slots)
    slot_sample = gradient.float().index_select(1, slots.neuron).T.contiguous()
    out = features.new_empty(positions, channels, samples)
    compiled.readout_feature_gradient_on_gpu(
        _launch(features),
        (*features.shape, len(slots.neuron)),
        masks.by_position(),
        slot_sample.data_ptr(),
        out.data_ptr(),
    )
    return _by_batch(out)


class _Masks:
    """The arguments of the kernels in single precision; keep a reference during the call."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.values, self.weight = slots.values.float(), slots.weight_by_slot().float()
        self.values_by_slot = slots.values_by_slot().float()

    def by_slot(self) -> list[int]:
        slots = self.slots
        place, block_start, position = slots.blocks
        arrays = (
            slots.start,
            self.values_by_slot,
            place,
            block_start,
            position,
            self.weight,
            slots.neuron,
        )
        return [array.data_ptr() for array in arrays]

    def by_position(self) -> list[int]:
        slots = self.slots
        arrays = (
            slots.position_start,
            slots.slot,
            self.values,
            self.weight,
        )
        return [array.data_ptr() for array in arrays]


def _by_batch(features: Tensor) -> Tensor:
    """Transposes (batch, channel, position) to (position, channel, batch), or back."""
    return features.permute(2, 1, 0).contiguous()


def _launch(features: Tensor) -> tuple[int, int, bool]:
    """The device, the stream, and whether the features are bfloat16."""
    device = features.device
    stream = torch.cuda.current_stream(device).cuda_stream
    return device.index, stream, features.dtype == torch.bfloat16
