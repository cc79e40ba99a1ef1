"""retinakit: neural system identification for vision neuroscience.

The public names below are imported when first used, so that `import retinakit` and the command
line stay fast.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Analysis": "retinakit.analysis",
    "AnalysisSpec": "retinakit.hookspecs",
    "Config": "retinakit.config",
    "Dataset": "retinakit.dataset",
    "DatasetSpec": "retinakit.hookspecs",
    "FittedModel": "retinakit.analysis",
    "Model": "retinakit.model",
    "ModelSpec": "retinakit.hookspecs",
    "RecordingError": "retinakit.errors",
    "Registry": "retinakit.registry",
    "TorchConfig": "retinakit.torch_model",
    "TorchModel": "retinakit.torch_model",
    "UserError": "retinakit.errors",
    "hookimpl": "retinakit.hookspecs",
    "load_model": "retinakit.model",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("retinakit")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'retinakit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
