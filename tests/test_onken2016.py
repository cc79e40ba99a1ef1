"""The movies and spikes of Onken et al. are read as their description says."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from retinakit.contracts import SPLITS, UserError
from retinakit_plugins.datasets.onken2016 import FIELD, Onken2016

FRAMES, CELLS, TRIALS = 60, 3, 4
NAME = "Movie2Exp1.mat"


@pytest.fixture
def published(tmp_path):
    """A folder of the published form, the movie as MATLAB reads it and the spike times in ms."""
    random = np.random.default_rng(0)
    for name in ("NeuralData/Spikes", "NeuralData/ReceptiveFields", "Stimuli/Movie2"):
        (tmp_path / name).mkdir(parents=True)
    movie = random.integers(0, 255, (FRAMES, 36, 36), np.uint8).repeat(10, 1).repeat(10, 2)
    for number, image in enumerate(movie, 1):
        image.ravel(order="F").tofile(tmp_path / "Stimuli" / "Movie2" / f"frame{number}.raw")
    spikes, outlines = np.empty((CELLS, TRIALS), object), np.empty((CELLS, 1), object)
    for place in np.ndindex(spikes.shape):
        count = random.integers(20, 40)
        spikes[place] = np.sort(random.uniform(-50, 2500, (1, count)))
    spikes[1, 2] = np.zeros((0, 0))  # a trial without spikes
    for cell in range(CELLS):
        angle = np.linspace(0, 2 * np.pi, 30 + cell)
        columns, rows = 100 + 20 * cell + 15 * np.cos(angle), 200 + 10 * np.sin(angle)
        outlines[cell, 0] = np.stack([columns, rows])
    savemat(tmp_path / "NeuralData" / "Spikes" / NAME, {"Spikes": spikes})
    savemat(tmp_path / "NeuralData" / "ReceptiveFields" / NAME, {"ReceptiveFields": outlines})
    return tmp_path, movie, spikes


def load(root, **options):
    return Onken2016({"root": root, "movie": 2, "size": 36} | options).load()


def test_frames_and_spikes_are_those_of_the_files(published):
    root, movie, spikes = published
    recording = load(root)
    assert [recording[split].sizes["frame"] for split in SPLITS] == [40, 10, 10]
    shown = np.concatenate([recording[split]["stimulus"] for split in SPLITS])
    small = movie[:, ::10, ::10].astype(float)
    np.testing.assert_allclose(shown, (small - small.mean()) / small.std(), atol=1e-4)
    counts = np.concatenate([recording[split]["response"] for split in SPLITS], 1)
    edges = np.arange(FRAMES + 1) * 1000 / 30
    for (cell, trial), times in np.ndenumerate(spikes):
        expected, _ = np.histogram(times, edges)
        np.testing.assert_array_equal(counts[trial, :, cell], expected)


def test_outlines_lie_on_the_rescaled_field(published):
    root, _, _ = published
    fields = load(root, size=90, cells=[2, 0])["receptive_fields"]
    pixel = FIELD / 360
    # The middle of the first of 90 pixels is 2.5 published pixels, counted from 1.
    np.testing.assert_allclose(fields["outline_x"].max("point"), pixel * np.array([152.5, 112.5]))
    np.testing.assert_allclose(fields["centre_y"], pixel * 197.5, rtol=0.01)
    turned = load(root, size=90, transposed=True)["receptive_fields"]
    np.testing.assert_allclose(turned["outline_y"].max("point")[0], pixel * 112.5)


def test_random_frames_are_an_option(published):
    recording = load(published[0], split="random_frames")
    known = [recording[split]["response"].notnull().all(("repeat", "cell")) for split in SPLITS]
    assert [int(own.sum()) for own in known] == [40, 10, 10]


def test_files_of_another_form_are_refused(published):
    root, _, _ = published
    with pytest.raises(UserError, match="there is no cell 9; the 3 cells"):
        load(root, cells=[9])
    with pytest.raises(UserError, match=r"there is no file .*Movie1Exp1.mat; set root"):
        load(root, movie=1)
    spikes = root / "NeuralData" / "Spikes" / NAME
    content = spikes.read_bytes()
    savemat(spikes, {"Spikes": np.zeros((3, 4))})
    with pytest.raises(UserError, match="the published one is a cell array"):
        load(root)
    spikes.write_bytes(content[:200])
    with pytest.raises(UserError, match="cannot be read as a MATLAB file with 'Spikes'"):
        load(root)
    spikes.write_bytes(content)
    Path(root / "Stimuli" / "Movie2" / "frame7.raw").write_bytes(b"short")
    with pytest.raises(UserError, match=r"frame7.raw has 5 bytes, and a published frame has"):
        load(root)
    for frame in (root / "Stimuli" / "Movie2").glob("*.raw"):
        frame.unlink()
    with pytest.raises(UserError, match="there are no frames in"):
        load(root)
