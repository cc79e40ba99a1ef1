"""retinakit: neural system identification for vision neuroscience.

The public names, listed in `__init__.pyi`, are imported when they are first used, so that
`import retinakit` and the command line stay fast.
"""

from typing import Any

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("retinakit")
    return _public(name)
