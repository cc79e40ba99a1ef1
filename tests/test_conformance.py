"""Every built-in plugin keeps its contract."""

from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from scipy.io import savemat

from retinakit.registry import Entry, Registry, load_entry
from retinakit.testing import (
    check_analysis,
    check_dataset,
    check_model,
    registered,
    small_recording,
)

BUILT_IN = "retinakit"

# Options that suit the results which the test gives to an analysis.
ABOUT_LOSSES: dict[str, dict[str, Any]] = {
    "sweep_curve": {"scores": ["loss"]},
    "readout_table": {"score": "loss", "columns": "size", "best_by": "loss"},
}


@cache
def recording() -> xr.DataTree:
    """One cell, and `truth`."""
    return small_recording(frames=600, cells=1)


def quick(entry: Entry, **more: Any) -> Any:
    """An instance of a plugin with the options that make it quick, and others."""
    cls: Any = load_entry(entry)
    return cls(cls.quick | more)


@cache
def fitted(name: str) -> Any:
    """A model of that name, fitted to `recording()`."""
    model = quick(Registry(builtin_only=True).find("model", name))
    model.fit(recording())
    return model


def losses() -> xr.DataTree:
    """The result of another analysis, of two models, one of them swept."""
    loss = xr.DataArray(np.arange(6.0).reshape(3, 2), {"size": [1, 2, 4]}, ("size", "seed"))
    swept = xr.Dataset({"loss": loss.assign_coords(seed=[0, 1])}, attrs={"sweep": "size,seed"})
    other = xr.Dataset({"loss": ("cell", [2.5])}, {"cell": [0]}, {"sweep": ""})
    return xr.DataTree.from_dict({"/swept": swept, "/other": other})


def own_file(folder: Path) -> Path:
    """A user's HDF5 file with a stimulus and spikes."""
    split = small_recording(frames=600)["train"].to_dataset()
    with h5py.File(folder / "own.h5", "w") as file:
        for name in ("stimulus", "response"):
            file[name] = split[name].values
    return folder / "own.h5"


def published_files(folder: Path, trials: int, running: int) -> Path:
    """Files of the form of Liu et al.'s, with three made-up cells and fewer, shorter trials."""
    random = np.random.default_rng(0)
    counts = {
        name: random.poisson(0.2, (3, n, trials)) for name, n in (("spk1", running), ("spk2", 300))
    }
    savemat(folder / "cell_data_01_NC.mat", {k: v.astype(np.uint8) for k, v in counts.items()})
    with h5py.File(folder / "stim_frz.h5", "w") as file:
        file["stim_frz"] = 2 * random.integers(0, 2, (200, 150, 300), dtype=np.int8) - 1
    return folder


def published_v1(folder: Path) -> Path:
    """Files of the form of Antolík et al.'s, with a made-up second scan of three cells."""
    random = np.random.default_rng(0)
    scan = folder / "region2"
    scan.mkdir()
    shapes = {
        "training_inputs": (40, 961),
        "training_set": (40, 3),
        "validation_inputs": (5, 961),
        "raw_validation_set": (4, 5, 3),
    }
    for name, shape in shapes.items():
        np.save(scan / f"{name}.npy", random.gamma(1.0, 1.0, shape))
    return folder


def published_movie(folder: Path) -> Path:
    """Files of the form of Onken et al.'s, with two made-up cells, three trials and 40 frames."""
    random = np.random.default_rng(0)
    for name in ("NeuralData/Spikes", "NeuralData/ReceptiveFields", "Stimuli/Movie1"):
        (folder / name).mkdir(parents=True)
    for frame in range(40):
        pixels = random.integers(0, 255, 360 * 360, np.uint8)
        pixels.tofile(folder / "Stimuli" / "Movie1" / f"{frame + 1}.raw")
    spikes, outlines = np.empty((2, 3), object), np.empty((1, 2), object)
    for place in np.ndindex(spikes.shape):
        spikes[place] = np.sort(random.uniform(0, 1300, (1, 50)))
    for cell in range(2):
        outlines[0, cell] = random.uniform(100, 200, (2, 8))
    name = "Movie1Exp1.mat"
    savemat(folder / "NeuralData" / "Spikes" / name, {"Spikes": spikes})
    savemat(folder / "NeuralData" / "ReceptiveFields" / name, {"ReceptiveFields": outlines})
    return folder


@pytest.mark.parametrize("plugin", registered("dataset", distribution=BUILT_IN))
def test_dataset(plugin: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.spec is not None
    more: dict[str, Any] = {}
    if plugin.spec.name == "hdf5":
        more = {"path": own_file(tmp_path)}
    if plugin.spec.name == "liu2017":
        trials, running = 3, 400
        monkeypatch.setattr("retinakit_plugins.datasets.liu2017.TRIALS", trials)
        monkeypatch.setattr("retinakit_plugins.datasets.liu2017.RUNNING", running)
        monkeypatch.setenv("RETINAKIT_CACHE", str(tmp_path / "cache"))
        more = {
            "root": published_files(tmp_path, trials, running),
            "cell": 1,
            "validation_every": 3,
        }
    if plugin.spec.name == "antolik2016":
        more = {"root": published_v1(tmp_path), "scan": 2}
    if plugin.spec.name == "onken2016":
        more = {"root": published_movie(tmp_path)}
    check_dataset(quick(plugin, **more))


@pytest.mark.parametrize("plugin", registered("model", distribution=BUILT_IN))
def test_model(plugin: Entry) -> None:
    check_model(plugin, small_recording(frames=600))


def test_a_model_with_exact_zeros() -> None:
    zeros = {"exact_zeros": True, "mask_l1": 0.01, "weight_l1": 0.01, "refresh_every": 7}
    plugin = Registry(builtin_only=True).find("model", "what_where")
    of_several = ["fitted_to_several", "parameters_of_several", "shared_parts"]
    of_several += ["several_saved", "several_resumed"]
    check_model(
        quick(plugin, **zeros),
        small_recording(frames=600),
        expected_failures=dict.fromkeys(of_several, "exact_zeros takes one recording"),
    )


@pytest.mark.parametrize("plugin", registered("analysis", distribution=BUILT_IN))
def test_analysis(plugin: Entry) -> None:
    assert plugin.spec is not None
    # Some analyses are of convolution filters, and some of layers.
    convolved = plugin.spec.name in ("subunits", "pruning", "features", "lesion", "substitution")
    names = ["cnn"] if convolved else ["ln", "cnn"]
    if plugin.spec.name in ("cell_types", "masks"):
        names = ["what_where"]
    if plugin.spec.name == "glm_filters":
        names = ["glm", "ln"]
    analysis = quick(plugin, **ABOUT_LOSSES.get(plugin.spec.name, {}))
    if plugin.spec.name == "motion_difficulty":
        clips = quick(Registry(builtin_only=True).find("dataset", "moving_dots")).load()
        check_analysis(analysis, clips, {})
        return
    models = {name: fitted(name) for name in names}
    check_analysis(analysis, recording(), models, {"losses": losses()})
