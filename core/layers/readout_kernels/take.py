"""Gathering entries of a tensor."""

import torch
from torch import Tensor

from retinakit.kernels import compiled


def take(values: Tensor, index: Tensor) -> Tensor:
    """values.flatten()[index] without a gradient, with a prefetching kernel if it was compiled.

    Args:
        values: of any shape.
        index: (entry,) int64; bounds are not checked.

    Returns:
        (entry,).
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
