"""The compiled kernels, or None if they were not built, and the dtypes that they support.

Without them, equivalent Numba functions are used.
"""

import logging
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

compiled: ModuleType | None
try:
    compiled = import_module("retinakit._kernels")
except ImportError as error:
    compiled = None
    logging.getLogger("retinakit").info(
        "the compiled kernels are missing (%s); the slower Numba versions are used", error
    )


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Converts an array to a dtype of the kernels: bool to uint8, wide integers to float64."""
    values = np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.view(np.uint8)
    if values.dtype in (np.int8, np.uint8):
        return values
    return values.astype(np.float32 if values.dtype.kind == "f" else np.float64, copy=False)
