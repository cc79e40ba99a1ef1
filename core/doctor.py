"""Versions, kernels, devices, plugins and data of this installation."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retinakit.pipeline.run import LIBRARIES
from retinakit.registry.find import Registry


def examine() -> Iterator[tuple[str, str]]:
    """Yields pairs of a name and a finding, such as ("gpu", "none that torch can use")."""
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
    found = "found" if data and Path(data).is_dir() else "this folder does not exist"
    unset = "not set (only liu2017 and antolik2016 use it)"
    yield "RETINAKIT_DATA", f"{data} ({found})" if data else unset


def _kernels() -> str:
    from retinakit.kernels import compiled

    if compiled is None:
        return (
            "not compiled, so slower Numba kernels are used; to compile them, install a C++ "
            "compiler and reinstall retinakit"
        )
    if not compiled.cuda:
        return "C++, without CUDA (nvcc was not found when they were compiled)"
    toolkit = compiled.cuda_toolkit_version()
    return (
        f"C++ and CUDA {toolkit // 1000}.{toolkit % 1000 // 10}; "
        f"{compiled.cuda_device_count()} CUDA devices"
    )


def _readout() -> str:
    from retinakit.kernels import compiled
    from retinakit.layers.readout_kernels import PER_ENTRY

    by = "torch" if compiled is None else "kernels"
    library = "torch" if compiled is None else "the C++ kernels"
    return f"sparse, by {library}, if less than {1 / PER_ENTRY[by]:.0%} of a large mask is nonzero"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
