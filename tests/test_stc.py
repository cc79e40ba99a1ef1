"""Spike-triggered covariance of cells with known directions."""

import numpy as np
import pytest

from retinakit.contracts import make_recording, make_split
from retinakit.spikes import stc
from retinakit.testing import small_recording
from retinakit_plugins.analyses.stc import STC


@pytest.fixture(scope="module")
def energy_cell():
    """Excited by one direction whatever its sign, and suppressed by another."""
    random = np.random.default_rng(0)
    excites, suppresses = np.zeros((2, 6, 6))
    excites[1:3, 1:3], suppresses[3:5, 3:5] = 0.5, 0.5
    splits = {}
    for name, frames in (("train", 60_000), ("validation", 500), ("test", 500)):
        stimulus = random.standard_normal((frames, 6, 6)).astype(np.float32)
        drive = [np.einsum("tyx,yx->t", stimulus, k) for k in (excites, suppresses)]
        rate = 0.3 * drive[0] ** 2 / (1 + drive[1] ** 2)
        counts = random.poisson(np.roll(rate, 1))  # one frame later
        splits[name] = make_split(stimulus, counts[:, None], frame_interval=0.1)
    return make_recording(splits), excites, suppresses


def test_both_directions_of_an_energy_cell_are_found_and_nothing_else(energy_cell):
    recording, excites, suppresses = energy_cell
    result = STC({"lags": 3}).run(recording).isel(cell=0)
    assert int(result["excitatory"]) == 1
    assert int(result["suppressive"]) == 1
    for side, direction in (("largest", excites), ("smallest", suppresses)):
        found = result["component_image"].sel(side=side, component=0)
        assert abs(float((found.sel(lag=1) * direction).sum())) > 0.95


def test_unrelated_spikes_stay_within_the_band():
    random = np.random.default_rng(1)
    stimulus = random.standard_normal((20_000, 4, 4))
    split = make_split(stimulus, random.poisson(0.3, (20_000, 1)), frame_interval=0.1)
    recording = make_recording({"train": split, "validation": split, "test": split})
    result = STC({"lags": 3, "draws": 20}).run(recording)
    assert int(result["excitatory"].item()) + int(result["suppressive"].item()) == 0


def test_the_average_is_projected_out():
    recording = small_recording(frames=2000, cells=1)
    result = STC({"lags": 3, "draws": 2}).run(recording).isel(cell=0)
    mean = stc(recording["train"].to_dataset(), 3)["sta"].values.ravel()
    for side in ("largest", "smallest"):
        found = result["component_image"].sel(side=side, component=0).values.ravel()
        assert abs(found @ mean) / np.linalg.norm(mean) < 0.02
