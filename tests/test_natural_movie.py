"""Natural movies and the simulated population that sees them."""

import h5py
import numpy as np
import pytest

from retinakit.contracts import SPLITS, UserError
from retinakit.simulation import (
    FileMovie,
    GanglionCells,
    Motion,
    SceneMovie,
    area_average,
    pink_noise,
)
from retinakit.spikes import receptive_field, sta
from retinakit_plugins.datasets.natural_movie import NaturalMovie

INTERVAL = 0.033
SMALL = {"size": 12, "cells": 6, "frames": 900, "repeats": 4, "scenes": "pink_noise"}

# Statistics of the spikes of two published recordings (38 and 49 cells, 30 trials, bins of 33 ms)
# of Onken et al. 2016, and of a simulated population fitted to them by hand: medians over cells.
PUBLISHED = {
    "mean rate": (1.1, 2.9),
    "empty bins": (0.75, 0.88),
    "odd-even correlation": (0.93, 0.97),
    "explainable variance": (0.49, 0.63),
    "peak rate": (55, 74),
}


def load(**options):
    seed = options.pop("seed", 0)
    return NaturalMovie(SMALL | options, seed=seed).load()


def whole(recording, name):
    """A variable of all frames of the movie."""
    parts = [recording[split][name] for split in SPLITS]
    return np.concatenate([part.values for part in parts], parts[0].dims.index("frame"))


def statistics(spikes):
    """Medians over cells for spikes (repeat, frame, cell)."""
    counts = spikes.astype(np.float32)
    mean, odd, even = counts.mean(0), counts[::2].mean(0), counts[1::2].mean(0)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(odd.T, even.T, strict=True)]
    explainable = 1 - counts.var(0, ddof=1).mean(0) / counts.var((0, 1))
    values = {
        "mean rate": mean.mean(0) / INTERVAL,
        "empty bins": (mean == 0).mean(0),
        "odd-even correlation": correlation,
        "explainable variance": explainable,
        "peak rate": mean.max(0) / INTERVAL,
    }
    return {name: float(np.median(of_cell)) for name, of_cell in values.items()}


def test_the_spikes_have_the_statistics_of_recorded_ones():
    recording = NaturalMovie({"frames": 5000, "cells": 60}, seed=0).load()
    found = statistics(whole(recording, "response"))
    print({name: round(value, 3) for name, value in found.items()})
    for name, (low, high) in PUBLISHED.items():
        assert low <= found[name] <= high, name


def test_a_longer_movie_starts_with_the_frames_of_a_shorter_one():
    first, second = load(), load(frames=1200)
    for name in ("stimulus", "rate"):
        np.testing.assert_array_equal(whole(first, name), whole(second, name)[:900])


def test_cells_are_the_same_whatever_they_are_shown(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).random((600, 20, 24), np.float32))
    first = load()["truth"]
    shown = [
        {"number": 2},
        {"stimulus": "white_noise"},
        {"cut": 0, "objects": 0, "contrast": 0.3},
        {"movie": tmp_path / "mine.npy", "frames": None},
    ]
    for options in shown:
        other = load(**options)
        assert other["truth"].to_dataset().identical(first.to_dataset())
    assert not load(seed=1)["truth"]["location_y"].equals(first["location_y"])


@pytest.mark.parametrize("options", [{}, {"stimulus": "white_noise", "noise_check": 2}])
def test_frames_of_a_large_movie_are_drawn_when_used(monkeypatch, options):
    held = load(**options)
    monkeypatch.setattr("retinakit_plugins.datasets.natural_movie.IN_MEMORY", 0)
    drawn = load(**options)
    assert not drawn["test"]["stimulus"].variable._in_memory
    for split in SPLITS:
        assert drawn[split].to_dataset().identical(held[split].to_dataset())


def test_the_last_sixths_are_validation_and_test():
    recording = load()
    assert [recording[split].sizes["frame"] for split in SPLITS] == [600, 150, 150]
    assert (np.diff(np.concatenate([recording[split]["time"] for split in SPLITS])) > 0).all()
    assert recording["train"]["response"].dtype == np.uint8


def test_random_frames_belong_to_one_split_each():
    recording, ordered = load(split="random_frames"), load()
    known = [recording[split]["response"].notnull().all(("repeat", "cell")) for split in SPLITS]
    assert [int(own.sum()) for own in known] == [600, 150, 150]
    np.testing.assert_array_equal(sum(own.values.astype(int) for own in known), 1)
    for split, own in zip(SPLITS, known, strict=True):
        np.testing.assert_array_equal(
            recording[split]["response"].values[:, own], whole(ordered, "response")[:, own]
        )
        np.testing.assert_array_equal(recording[split]["rate"].notnull().all("cell"), own)
        np.testing.assert_array_equal(recording[split]["stimulus"], whole(ordered, "stimulus"))


def test_white_noise_finds_the_receptive_fields():
    recording = load(size=20, cells=12, stimulus="white_noise", frames=24_000, repeats=1)
    truth = recording["truth"].to_dataset()
    average = sta(recording["train"].to_dataset(), 8)["sta"]
    field = receptive_field(average)
    assert field["found"].mean() > 0.7
    for name in ("centre_y", "centre_x"):
        assert np.abs(field[name] - truth[name]).median() < 0.5 * 2700 / 20
    field, truth, average = (of.isel(cell=field["found"].values) for of in (field, truth, average))
    place = {dim: field[f"peak_{dim}"] for dim in ("y", "x")}
    at_peak = average.sel(place, method="nearest").sel(lag=field["peak_lag"])
    true = truth["receptive_field"].sel(place, method="nearest")
    np.testing.assert_array_equal(np.sign(at_peak), np.sign(true))


def test_rates_follow_from_the_equations():
    """The drive in blocks against the equations written for one cell and all frames."""
    frames = 700
    random = np.random.default_rng(3)
    cells = GanglionCells.drawn(7, 12, INTERVAL, random, adaptation=2.0, feedback=0.4)
    movie = random.standard_normal((frames, 12, 12)).astype(np.float32)
    cells = cells.calibrated(movie.__getitem__, frames, np.full(7, 0.2), 0.6)
    rate = cells.rate(cells.drive(movie.__getitem__, frames))
    np.testing.assert_allclose(rate.mean(0), 0.2, rtol=0.02)
    assert (rate == 0).mean(0) == pytest.approx(0.6, abs=0.01)

    seen = np.einsum("tyx,byx->tb", movie, cells.bipolar_fields())
    excitation = np.zeros((frames, 7))
    for cell, kind in enumerate(cells.cell_type):
        drive = np.stack([np.convolve(u, cells.temporal[kind])[:frames] for u in seen.T], 1)
        excitation[:, cell] = np.maximum(drive, 0) @ cells.pooling[cell]
    np.testing.assert_allclose(excitation.mean(0), 1, rtol=1e-3)
    gain, amacrine, expected = np.zeros(7), np.zeros(7), []
    for e in excitation:
        value = e / (1 + 2.0 * gain) - 0.4 * cells.amacrine @ amacrine
        gain += (e - gain) / 30
        amacrine += (np.maximum(value, 0) - amacrine) / 3
        above = np.maximum(value - cells.threshold, 0)
        expected.append(2.2 * (1 - np.exp(-cells.gain * above / 2.2)))
    np.testing.assert_allclose(rate, expected, atol=2e-4)


def test_the_gain_remembers_more_than_twenty_frames():
    """A cell responds less to the same frames after a long time of strong stimulation."""
    random = np.random.default_rng(0)
    scenes = [0.5 * pink_noise(60, random).astype(np.float32)]
    movie = SceneMovie.drawn(scenes, 20, 200, INTERVAL, random, Motion(cut=0))
    frames = movie(np.arange(200))
    weak, strong = frames.copy(), frames.copy()
    weak[:160] *= 0.1
    for adaptation, ratio in ((5.0, 0.75), (0.0, 1.0)):
        cells = GanglionCells.drawn(20, 20, INTERVAL, random, adaptation=adaptation)
        cells = cells.calibrated(frames.__getitem__, 200, np.full(20, 0.1), 0.5)
        after = [cells.drive(shown.__getitem__, 200)[182:].mean() for shown in (weak, strong)]
        assert after[1] / after[0] == pytest.approx(ratio, abs=0.06)


def test_objects_cover_the_scene_and_cuts_change_it():
    random = np.random.default_rng(0)
    scenes = [np.full((40, 40), value, np.float32) for value in (-0.5, 0.0, 0.5)]
    still = Motion(drift=0, saccade=0, objects=0, cut=2)
    movie = SceneMovie.drawn(scenes, 20, 600, INTERVAL, random, still)
    frames = movie(np.arange(600))
    assert (frames.std((1, 2)) == 0).all()
    cuts = np.count_nonzero(np.diff(frames[:, 0, 0]))
    assert 3 <= cuts <= 20  # about one every 2 s in 20 s
    swimming = SceneMovie.drawn(
        scenes[1:2], 20, 600, INTERVAL, random, Motion(drift=0, saccade=0, cut=0)
    )
    covered = (swimming(np.arange(600)) != 0).mean((1, 2))
    assert 0.02 < covered.mean() < 0.3


def test_averages_over_areas_keep_the_mean():
    image = np.random.default_rng(0).random((3, 17, 29))
    np.testing.assert_allclose(
        area_average(image, 5, 7).mean((1, 2)), image.mean((1, 2)), rtol=1e-5
    )
    squares = image[:, :16, :28].reshape(3, 8, 2, 14, 2).mean((2, 4))
    np.testing.assert_allclose(area_average(image[:, :16, :28], 8, 14), squares, rtol=1e-5)


def test_a_movie_is_the_same_from_each_kind_of_file(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    frames = np.random.default_rng(0).integers(0, 255, (40, 24, 32), np.uint8)
    np.save(tmp_path / "mine.npy", frames)
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["shown/movie"] = frames
    imageio.imwrite(tmp_path / "mine.tif", frames)
    np.save(tmp_path / "colour.npy", np.repeat(frames[..., None], 3, -1))
    expected = area_average(frames[:, :, 4:28], 12, 12)
    expected = (0.5 * (expected - expected.mean()) / expected.std()).clip(-1, 1)
    for name in ("mine.npy", "mine.h5", "mine.tif", "colour.npy"):
        movie = FileMovie(tmp_path / name, 12, "shown/movie")
        assert movie.frames == 40
        np.testing.assert_allclose(movie(np.arange(40)), expected, atol=1e-3)
        np.testing.assert_allclose(movie(np.array([7, 3])), expected[[7, 3]], atol=1e-3)


@pytest.mark.filterwarnings("ignore:The legacy")  # imageio tries all of its plugins
def test_a_file_that_is_no_movie_is_refused(tmp_path):
    def refused(name, match, **options):
        with pytest.raises(UserError, match=match):
            load(movie=tmp_path / name, **{"frames": None} | options)

    np.save(tmp_path / "flat.npy", np.zeros((40, 20)))
    refused("flat.npy", r"of shape \(40, 20\); give it as \(frame, y, x\)")
    np.save(tmp_path / "grey.npy", np.zeros((40, 20, 20)))
    refused("grey.npy", "constant")
    np.save(tmp_path / "short.npy", np.random.default_rng(0).random((40, 20, 20)))
    refused("short.npy", "has 40 frames, and 900 are needed", frames=900)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    refused("broken.npy", "cannot be read as a NumPy array")
    (tmp_path / "broken.gif").write_bytes(b"no movie")
    refused("broken.gif", "cannot be read by imageio")
    refused("missing.npy", "No such file")


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="leave no frames for training"):
        NaturalMovie({"validation": 0.5, "test": 0.5})
    with pytest.raises(ValueError, match="not both"):
        NaturalMovie({"movie": "mine.npy", "stimulus": "white_noise"})
    with pytest.raises(UserError, match="does not fit into the photograph"):
        NaturalMovie({"size": 400, "cells": 2, "frames": 30}).load()
