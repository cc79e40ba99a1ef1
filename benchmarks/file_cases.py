"""What files cost: small NetCDF files beside xarray's own engine, and training from a file.

A sweep writes and reads thousands of small recordings. A movie larger than memory is read from its
file while batches need it; the same fit with the movie in memory is the peer, so that a ratio of 1
would be reading for nothing.
"""

import tempfile
from functools import cache, partial
from pathlib import Path

import h5py
import numpy as np
import torch
import xarray as xr
from contest import Contest

from retinakit.contracts import read_netcdf, write_netcdf
from retinakit.training import frames
from retinakit_plugins.datasets import hdf5
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.rectified_linear import LNP

FOLDER = tempfile.TemporaryDirectory()
MODELS = {
    "lnp": (LNP, {"lags": 20, "steps": 60}),
    "cnn": (CNN, {"filters": 4, "kernel": 9, "stride": 4, "steps": 60}),
}
FRAMES, SIDE, CELLS = 60_000, 40, 4


@cache
def small():
    options = {"frames": 2000, "validation_frames": 500, "test_frames": 500, "repeats": 5}
    return SubunitRGC(options).load()


def values(tree):
    return np.concatenate([v.values.ravel() for v in tree["train"].data_vars.values()])


def write(by):
    path = Path(FOLDER.name) / f"{by.__name__}.nc"
    by(small(), path)
    return values(read_netcdf(path, load=True))


def read(by):
    path = Path(FOLDER.name) / "small.nc"
    if not path.exists():
        write_netcdf(small(), path)
    return values(by(path))


def xarray_writes(tree, path):
    tree.to_netcdf(path, engine="h5netcdf")


def xarray_reads(path):
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()


@cache
def movie():
    """A file with a float32 movie that is not compressed."""
    path = Path(FOLDER.name) / "movie.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        shown = file.create_dataset("stimulus", (FRAMES, SIDE, SIDE), np.float32)
        for start in range(0, FRAMES, 10_000):
            shown[start : start + 10_000] = random.standard_normal((10_000, SIDE, SIDE))
        file["response"] = random.poisson(0.5, (FRAMES, CELLS))
    return path


def fit(model, in_memory):
    cls, options = MODELS[model]
    most = 2**40 if in_memory else 0
    before = hdf5.IN_MEMORY, frames.IN_MEMORY
    hdf5.IN_MEMORY = frames.IN_MEMORY = most
    try:
        recording = hdf5.HDF5({"path": movie()}).load()
        fitted = cls({**options, "check_every": options["steps"], "accelerator": "cpu"})
        fitted.fit(recording)
    finally:
        hdf5.IN_MEMORY, frames.IN_MEMORY = before
    return torch.cat([p.detach().flatten() for p in fitted.module.parameters()]).numpy()


def contests():
    small_files = [
        ("file-write-small", "a recording of 2,000 frames is written", write, write_netcdf,
         xarray_writes),
        ("file-read-small", "a recording of 2,000 frames is read", read,
         partial(read_netcdf, load=True), xarray_reads),
    ]  # fmt: skip
    found = [
        Contest(
            id=name,
            group=group,
            target=5.0,
            sides=lambda work=work, ours=ours, theirs=theirs: (
                partial(work, ours),
                partial(work, theirs),
            ),
            tolerance=0,
        )
        for name, group, work, ours, theirs in small_files
    ]
    return found + [
        Contest(
            id=f"file-training-{model}",
            group=f"{model} is fitted to a movie in its file, and in memory",
            target=0.8,
            sides=lambda model=model: (partial(fit, model, False), partial(fit, model, True)),
            tolerance=1e-6,
        )
        for model in MODELS
    ]
