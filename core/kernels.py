"""The compiled kernels, or None where they were not built: the Numba twins serve then."""

import logging
from importlib import import_module
from types import ModuleType

compiled: ModuleType | None
try:
    compiled = import_module("retinakit._kernels")
except ImportError as error:
    compiled = None
    logging.getLogger("retinakit").info(
        "the compiled kernels are not there (%s); the Numba ones serve", error
    )
