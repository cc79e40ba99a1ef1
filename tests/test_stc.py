"""Spike-triggered covariance of cells with known directions."""

import numpy as np
import pytest
import scipy.signal
import xarray as xr

from retinakit.contracts import UserError, make_recording, make_split
from retinakit.spikes import stc, stimulus_covariance
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


LAGS, BARS = 6, 16


def gabor(phase):
    lag, x = np.meshgrid(np.arange(LAGS), np.arange(BARS), indexing="ij")
    weight = np.exp(-(((x - 8) / 3) ** 2) - ((lag - 2.5) / 2) ** 2) * np.cos(0.9 * x + phase)
    return weight / np.linalg.norm(weight)


GABORS = [gabor(0), gabor(np.pi / 2)]


def bars(kind, random, frames):
    """Stimuli of bars: white, or with spectra of 1/f in space and of an autoregression in time."""
    if kind == "binary":
        return random.choice(np.array([-1, 1], np.int8), (frames, BARS))
    movie = random.standard_normal((frames, BARS))
    if kind == "correlated":
        spectrum = 1 / np.maximum(np.fft.rfftfreq(BARS), 1 / BARS)
        movie = np.fft.irfft(np.fft.rfft(movie) * spectrum, BARS)
        movie = scipy.signal.lfilter([1], [1, -0.5], movie, axis=0)
        movie /= movie.std()
    return movie.astype(np.float32)


def cell_of_bars(kind, answer, frames, seed):
    random = np.random.default_rng(seed)
    movie = bars(kind, random, frames)
    drives = []
    for weight in GABORS:
        drive = sum(np.roll(movie @ weight[lag], lag) for lag in range(LAGS))
        drives.append(drive / drive.std())
    split = make_split(
        movie[:, None], random.poisson(answer(*drives))[:, None], frame_interval=0.02
    )
    few = split.isel(frame=slice(0, 100))
    return make_recording({"train": split, "validation": few, "test": few})


@pytest.mark.parametrize("kind", ["white", "binary", "correlated"])
def test_a_cell_of_one_filter_has_no_significant_axis(kind):
    def linear(drive, _):
        return 0.3 * np.exp(drive - 0.5)

    counts = []
    for seed in range(6):
        recording = cell_of_bars(kind, linear, 8000, seed)
        result = STC({"lags": LAGS}, seed=seed).run(recording)
        counts.append(int(result["excitatory"].item()) + int(result["suppressive"].item()))
    assert np.count_nonzero(counts) <= 1


@pytest.mark.parametrize("kind", ["white", "binary", "correlated"])
def test_a_complex_cell_has_its_two_filters(kind):
    recording = cell_of_bars(kind, lambda a, b: 0.1 * (a**2 + b**2), 40_000, 0)
    result = STC({"lags": LAGS}).run(recording).isel(cell=0)
    assert (int(result["excitatory"]), int(result["suppressive"])) == (2, 0)
    found = result["component_image"].sel(side="largest")[:2].values.reshape(2, -1)
    space, _ = np.linalg.qr(np.reshape(GABORS, (2, -1)).T)
    assert np.linalg.norm(found @ space, axis=1).min() > (0.75 if kind == "correlated" else 0.95)
    if kind == "correlated":  # without whitening, the filters are blurred
        blurred = STC({"lags": LAGS, "shrinkage": 1, "draws": 2}).run(recording).isel(cell=0)
        found = blurred["component_image"].sel(side="largest")[:2].values.reshape(2, -1)
        assert np.linalg.norm(found @ space, axis=1).max() < 0.75


def test_spikes_at_the_start_of_segments_only_are_those_without_history():
    random = np.random.default_rng(0)
    spikes = np.zeros((400, 1))
    spikes[::20] = 1  # in frames without a history, and one that has it
    spikes[30] = 1
    split = make_split(
        random.standard_normal((400, 1, 3)),
        spikes,
        frame_interval=0.1,
        segment=np.arange(400) // 20,
    )
    recording = make_recording({"train": split, "validation": split, "test": split})
    result = STC({"lags": 5}).run(recording)
    assert np.isfinite(result["null_high"]).all()
    spikes[30] = 0
    lost = split.assign(response=split["response"].copy(data=spikes))
    recording = make_recording({"train": lost, "validation": split, "test": split})
    with pytest.raises(UserError, match="no cell has a spike with 5 frames of history"):
        STC({"lags": 5}).run(recording)


def test_a_cell_without_spikes_is_nan_and_the_others_are_as_before():
    recording = small_recording(frames=1000, cells=3)
    options = {"lags": 2, "draws": 2}
    before = STC(options).run(recording)
    recording["train"]["response"].loc[{"cell": 1}] = 0
    result = STC(options).run(recording)
    xr.testing.assert_equal(result.isel(cell=[0, 2]).drop_vars("reason"), before.isel(cell=[0, 2]))
    assert result["eigenvalue"].isel(cell=1).isnull().all()
    assert result["suppressive"].values[1] == 0
    tree = xr.DataTree.from_dict({"cells": result})
    reasons = STC(options).table(tree)["reason"].tolist()
    assert reasons == ["", "the cell has no spike with 2 frames of history", ""]
    assert len(STC(options).plot(tree).axes) > 0


def test_a_stimulus_that_does_not_vary_is_refused():
    split = make_split(np.ones((100, 1, 3)), np.ones((100, 1)), frame_interval=0.1)
    with pytest.raises(UserError, match="does not vary"):
        STC({"lags": 5}).run(make_recording({"train": split, "validation": split, "test": split}))


def test_the_average_is_projected_out():
    recording = small_recording(frames=2000, cells=1)
    result = STC({"lags": 3, "draws": 2}).run(recording).isel(cell=0)
    train = recording["train"].to_dataset()
    mean = (stc(train, 3)["sta"] - stimulus_covariance(train, 3)["mean"]).values.ravel()
    for side in ("largest", "smallest"):
        found = result["component_image"].sel(side=side, component=0).values.ravel()
        assert abs(found @ mean) / np.linalg.norm(mean) < 1e-9
