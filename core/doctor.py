"""What this installation can do."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retinakit.pipeline.run import LIBRARIES
from retinakit.registry.find import Registry


def examine() -> Iterator[tuple[str, str]]:
    """Findings as (what, how it is)."""
    yield "python", platform.python_version()
    for name in (*LIBRARIES, "distributed", "optuna", "retinawhitenoise"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
    yield "kernels", _kernels()
    yield "readout", _readout()
    yield "gpu", _gpu()
    yield "processors", str(os.cpu_count())
    entries = Registry().entries
    broken = [e for e in entries if e.status != "ok"]
    yield "plugins", f"{len(entries) - len(broken)} usable"
    for entry in broken:
        yield "", f"{entry.full_name}: {entry.status} ({entry.reason})"
    data = os.environ.get("RETINAKIT_DATA")
    found = "found" if data and Path(data).is_dir() else "there is no such folder"
    yield "RETINAKIT_DATA", f"{data} ({found})" if data else "not set (only liu2017 needs it)"


def _kernels() -> str:
    from retinakit.kernels import compiled

    if compiled is None:
        return (
            "not built: the slower Numba versions are used; install a C++ compiler and reinstall "
            "retinakit to have them"
        )
    if not compiled.cuda:
        return "C++; without CUDA (no nvcc was found when they were built)"
    toolkit = compiled.cuda_toolkit_version()
    return (
        f"C++ and CUDA {toolkit // 1000}.{toolkit % 1000 // 10}; "
        f"{compiled.cuda_device_count()} CUDA devices"
    )


def _readout() -> str:
    from retinakit.kernels import compiled
    from retinakit.layers.readout_kernels import PER_ENTRY

    by = "torch" if compiled is None else "kernels"
    return f"sparse if less than {1 / PER_ENTRY[by]:.0%} of large masks is nonzero, by {by}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
