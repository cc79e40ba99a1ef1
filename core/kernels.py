"""The compiled kernels, or None where they were not built: the Numba twins serve then."""

import logging
from types import ModuleType

compiled: ModuleType | None
try:
    from retinakit import _kernels as compiled
except ImportError as error:
    compiled = None
    logging.getLogger("retinakit").info(
        "the compiled kernels are not there (%s); the Numba ones serve", error
    )
