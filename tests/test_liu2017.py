"""The real recording, where it is: set RETINAKIT_DATA to the folder that holds liu2017/."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from retinakit.contracts import UserError
from retinakit.spikes import sta
from retinakit_plugins.datasets import liu2017
from retinakit_plugins.datasets.liu2017 import Liu2017

DATA = Path(os.environ.get("RETINAKIT_DATA", "nowhere")) / "liu2017"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="RETINAKIT_DATA has no liu2017/")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory, worker_id):
    """A cache of the test run's own, shared by its workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETINAKIT_CACHE", os.environ.get("RETINAKIT_CACHE", str(folder)))
        yield


def test_the_generator_draws_what_the_stimulus_program_drew():
    from retinawhitenoise import binarystimulus

    bits = np.zeros((3, liu2017.HEIGHT, liu2017.WIDTH // 8), np.uint8)
    liu2017._draw_frames(liu2017._start(liu2017.RUNNING_SEED), bits)
    drawn = 2 * np.unpackbits(bits, axis=-1).astype(np.int8) - 1
    published = next(iter(binarystimulus.recreate(-liu2017.RUNNING_SEED, (200, 150), 3, 1)))
    np.testing.assert_array_equal(drawn, published.transpose(2, 1, 0))


def test_a_packed_movie_is_read_as_if_it_were_an_array():
    import xarray as xr
    from xarray.core import indexing

    random = np.random.default_rng(0)
    movie = 2 * random.integers(0, 2, (30, 150, 200), dtype=np.int8) - 1
    bits = np.packbits(movie > 0, axis=-1)
    region = (13, 41, 7, 30)
    lazy = xr.Variable(
        ("frame", "y", "x"),
        indexing.LazilyIndexedArray(liu2017.PackedMovie(bits, region)),
    )
    array = xr.Variable(("frame", "y", "x"), movie[:, 7:30, 13:41])
    for key in (
        (slice(None), slice(None), slice(None)),
        (slice(4, 9), slice(2, 5), slice(None, None, 3)),
        (np.array([3, 1, 8]), slice(None), slice(1, 2)),
        (5, slice(None), slice(None)),
        (slice(None), 3, 4),
        (np.array([0, 9]), np.array([2, 5]), np.array([1, 3, 5])),
    ):
        np.testing.assert_array_equal(lazy[key].values, array[key].values)


@pytest.mark.parametrize("content", ["text", "another name", "another shape"])
def test_a_damaged_file_of_the_frozen_noise_is_named(tmp_path, content):
    path = tmp_path / liu2017.FROZEN_STIMULUS
    if content == "text":
        path.write_text("not found")
    else:
        with h5py.File(path, "w") as file:
            file["stim" if content == "another name" else "stim_frz"] = np.zeros((2, 3))
    with pytest.raises(UserError, match=rf"{path.name}.*download"):
        Liu2017({"root": tmp_path})._frozen_noise()


@needs_data
def test_the_frozen_noise_is_that_of_its_seed():
    bits = np.zeros((300, liu2017.HEIGHT, liu2017.WIDTH // 8), np.uint8)
    liu2017._draw_frames(liu2017._start(liu2017.FROZEN_SEED), bits)
    with h5py.File(DATA / "stim_frz.h5") as file:
        published = file["stim_frz"][()].transpose(2, 1, 0)
    np.testing.assert_array_equal(2 * np.unpackbits(bits, axis=-1).astype(np.int8) - 1, published)


@needs_data
@pytest.mark.slow
def test_the_averages_of_cells_0_and_5_equal_the_published_ones_exactly():
    recording = Liu2017({"cells": [0, 5]}).load()
    splits = [recording[name].to_dataset() for name in ("train", "validation")]
    found = sta(splits, 20, first_lag=1)["sta"]
    for index, cell in enumerate((0, 5)):
        with h5py.File(DATA / f"reference_sta_cell{cell}.h5") as file:
            published = file["STA"][()]  # (x, y, lag), the oldest lag first
        np.testing.assert_array_equal(found[index].values[::-1].transpose(2, 1, 0), published)


@needs_data
@pytest.mark.slow
def test_a_crop_is_around_the_receptive_field_of_a_weak_broad_cell():
    recording = Liu2017({"cell": 51}).load()
    train = recording["train"].to_dataset()
    assert train.sizes["frame"] == 197 * 1500 and train["stimulus"].dtype == np.int8
    assert recording["validation"].sizes["frame"] == 22 * 1500
    assert recording["test"]["response"].sizes == {"repeat": 219, "frame": 300, "cell": 1}
    left, top = recording.attrs["column_of_first_check"], recording.attrs["row_of_first_check"]
    # Its peak alone is 8 checks off.
    assert abs(left + 12 - 93) <= 2 and abs(top + 12 - 78) <= 2
