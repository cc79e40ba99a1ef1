"""Entries of a tensor that lie anywhere in it."""

import torch
from torch import Tensor

from retinakit.kernels import compiled


def take(values: Tensor, index: Tensor) -> Tensor:
    """values[index] without a gradient, by a kernel that prefetches if it was compiled.

    Args:
        values: of any shape, flattened here.
        index: (entry,) int64; bounds are not checked.
    """
    values = values.contiguous()
    served = compiled is not None and values.device.type == "cpu" and values.dtype == torch.float32
    if not served or torch.compiler.is_compiling():
        return values.view(-1).index_select(0, index)
    assert compiled is not None
    out = values.new_empty(len(index))
    compiled.take(
        values.data_ptr(), index.data_ptr(), len(index), out.data_ptr(), torch.get_num_threads()
    )
    return out
