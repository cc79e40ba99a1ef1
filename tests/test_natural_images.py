"""Cells shown another stimulus, and models tested on it."""

import sys

import h5py
import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError, coordinates_of
from retinakit.scores import NOT_RECORDED
from retinakit.simulation import cells_of, simulate
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.flash_response import FlashResponse, _examples
from retinakit_plugins.datasets.hdf5 import HDF5
from retinakit_plugins.datasets.natural_images import NaturalImages
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse

SMALL = {"frames": 3000, "validation_frames": 200, "test_frames": 200, "threshold": 1.0}
LAGS, RATE = 20, 30
BLANK, FLASH = 24, 6


@pytest.fixture(scope="module")
def cells():
    """Two cells with subunits of unequal weight."""
    options = {"cells": 2, "weight_spread": 0.3, "height": 9, "width": 10}
    return SubunitRGC(SMALL | options, seed=5).load()


@pytest.fixture(scope="module")
def flashes(cells):
    return NaturalImages({"images": 40}, seed=1).load(cells)


class TestTruth:
    def test_the_truth_of_a_recording_describes_its_cells(self, cells):
        train = cells["train"]
        again = simulate(cells_of(cells["truth"].to_dataset()), train["stimulus"].values)
        np.testing.assert_array_equal(again.rate, train["rate"])

    def test_so_does_that_of_the_test_kit_which_has_a_filter_for_each_cell(self):
        recording = small_recording(frames=400)
        split = recording["validation"]  # of one segment
        again = simulate(cells_of(recording["truth"].to_dataset()), split["stimulus"].values)
        np.testing.assert_allclose(again.rate, split["rate"], atol=1e-5)

    def test_a_truth_that_lacks_something_says_what(self, cells):
        truth = cells["truth"].to_dataset().drop_vars("threshold")
        del truth.attrs["contrast"]
        with pytest.raises(UserError, match="it has no threshold, contrast"):
            cells_of(truth)


class TestNaturalImages:
    def test_only_the_test_is_another(self, cells, flashes):
        for name in ("train", "validation", "truth"):
            assert flashes[name].to_dataset().identical(cells[name].to_dataset())
        test = flashes["test"]
        assert test.sizes["frame"] == 40 * (2 * BLANK + FLASH)
        assert test["response"].dims == ("repeat", "frame", "cell")

    def test_each_image_is_flashed_on_grey_in_a_segment_of_its_own(self, flashes):
        test, pictures = flashes["test"], flashes["images"]["picture"].values
        trials = test["stimulus"].values.reshape(40, 2 * BLANK + FLASH, 9, 10)
        assert (trials[:, :BLANK] == 0).all() and (trials[:, BLANK + FLASH :] == 0).all()
        np.testing.assert_array_equal(
            trials[:, BLANK : BLANK + FLASH], np.repeat(pictures[:, None], FLASH, 1)
        )
        onset = test["from_onset"].values.reshape(40, -1)
        np.testing.assert_allclose(onset[:, BLANK], 0, atol=1e-12)
        np.testing.assert_allclose(np.diff(onset, axis=1), 1 / RATE)
        np.testing.assert_array_equal(test["segment"], test["image"])

    def test_the_rate_of_an_image_is_the_equation_of_the_cells(self, cells, flashes):
        truth, test = cells["truth"], flashes["test"]
        kernel, weights = truth["temporal"].values, truth["output_weight"].values
        image = 17
        shown = test["stimulus"].values[test["image"].values == image].astype(float)
        drive = 0.5 * np.einsum("fyx,csyx->fcs", shown, truth["subunit_weight"].values)
        filtered = np.stack(
            [[np.convolve(one, kernel)[: len(shown)] for one in cell] for cell in drive.T]
        )  # (subunit, cell, frame)
        summed = np.einsum("scf,cs->fc", np.maximum(filtered, 0), weights)
        expected = 2.0 / RATE * np.maximum(summed - 1.0, 0)
        np.testing.assert_allclose(
            test["rate"].values[test["image"].values == image], expected, atol=1e-5
        )

    def test_spikes_follow_the_rate(self, flashes):
        test = flashes["test"]
        expected = float(np.minimum(test["rate"], 1).sum()) * test.sizes["repeat"]
        assert float(test["response"].sum()) == pytest.approx(expected, abs=4 * np.sqrt(expected))

    def test_pictures_are_averages_of_the_photographs_pixels(self, cells):
        from skimage import color, data

        result = NaturalImages({"images": 30, "pixels": 3, "contrast": 0.2}).load(cells)["images"]
        assert float(abs(result["picture"]).max()) <= 1
        index = int(np.flatnonzero(result["photograph"].values == "chelsea")[0])
        scene = color.rgb2gray(data.chelsea())
        scene = (0.2 * (scene - scene.mean()) / scene.std()).clip(-1, 1)
        # Averages over 3 x 3 pixels at every place; the picture is every third of them, somewhere.
        windows = np.lib.stride_tricks.sliding_window_view(scene, (3, 3)).mean((2, 3))
        places = np.lib.stride_tricks.sliding_window_view(windows, (25, 28))[:, :, ::3, ::3]
        off = np.abs(places - result["picture"].values[index]).max((2, 3))
        assert off.min() < 1e-6

    def test_a_seed_repeats_the_images_and_another_does_not(self, cells):
        first, again, other = (
            NaturalImages({"images": 5}, seed=seed).load(cells) for seed in (3, 3, 4)
        )
        assert first["test"].to_dataset().identical(again["test"].to_dataset())
        assert not np.array_equal(first["images"]["picture"], other["images"]["picture"])

    def test_they_are_filtered_in_time_as_the_white_noise_is(self, flashes, cells):
        one = {"cell": 1}
        collapsed = TemporalCollapse(one).load(flashes)
        expected = TemporalCollapse(one).load(cells)["collapse"]["temporal"]
        xr.testing.assert_identical(collapsed["collapse"]["temporal"], expected)
        # What a filter of 20 lags leaves of the blank before an image.
        first = collapsed["test"]["from_onset"].values[0]
        assert first == pytest.approx((LAGS - 1 - BLANK) / RATE)

    def test_a_recording_without_its_cells_is_refused(self, cells):
        recorded = cells.copy()
        del recorded["truth"]
        with pytest.raises(UserError, match=r"has no group 'truth'.*to hdf5 as test_stimulus"):
            NaturalImages({}).load(recorded)

    def test_a_filtered_recording_is_refused(self, cells):
        collapsed = TemporalCollapse({"cell": 0}).load(cells)
        with pytest.raises(UserError, match="already filtered in time"):
            NaturalImages({}).load(collapsed)

    def test_a_blank_that_the_cells_look_back_over_is_refused(self, cells):
        with pytest.raises(
            UserError, match=r"the blank has 15 frames .* make blank 0.63 s or longer"
        ):
            NaturalImages({"blank": 0.5}).load(cells)

    def test_an_image_larger_than_a_photograph_is_refused(self, cells):
        with pytest.raises(UserError, match="larger than the photograph 'chelsea'"):
            NaturalImages({"pixels": 35}).load(cells)

    def test_without_scikit_image_it_says_what_to_install(self, cells, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage", None)
        with pytest.raises(UserError, match=r"retinakit\[natural\]"):
            NaturalImages({}).load(cells)


class TrueCells(SmallModel):
    """Predicts the true rate of the cells of a recording."""

    def __init__(self, recording, lags=LAGS):
        super().__init__()
        self.truth, self.back = recording["truth"].to_dataset(), lags
        self.field = coordinates_of(recording["train"].to_dataset(), lags)

    @property
    def lags(self):
        return self.back

    def respond(self, split):
        return simulate(cells_of(self.truth), split["stimulus"].values).rate


class TestFlashResponse:
    def test_counts_are_those_of_the_second_after_the_onset(self, flashes):
        result = FlashResponse({}).run(TrueCells(flashes), flashes)
        test = flashes["test"]
        inside = test["from_onset"].values > -0.01
        spikes = test["response"].values[:, inside].reshape(20, 40, FLASH + BLANK, 2)
        np.testing.assert_allclose(result["count_data"], spikes.sum(2).mean(0))
        np.testing.assert_array_equal(result["data"], spikes)
        assert result["from_onset"].values[0] == pytest.approx(0)

    def test_the_true_cell_is_as_good_as_its_noise_lets_it_be(self, flashes):
        result = FlashResponse({}).run(TrueCells(flashes), flashes)
        np.testing.assert_allclose(result["count_model"], result["count_true"], rtol=1e-6)
        np.testing.assert_allclose(result["correlation"], result["ceiling"], atol=0.02)
        # Counts of 20 trials fall on the wrong side of the limit now and then.
        assert (abs(result["silent_data"] - result["silent_model"]) <= 3).all()
        assert (result["silent_both"] >= result["silent_model"] - 3).all()
        assert (result["silent_both"] > 3).all() and (result["silent_both"] < 37).all()

    def test_spikes_of_the_model_are_drawn_from_its_rate(self, flashes):
        result = FlashResponse({}).run(TrueCells(flashes), flashes)
        expected = float(result["count_model"].sum()) * result.sizes["trial"]
        assert float(result["model"].sum()) == pytest.approx(expected, abs=4 * np.sqrt(expected))

    def test_a_cell_that_was_not_recorded_has_no_counts_and_is_not_silent(self, flashes):
        test = flashes["test"].to_dataset()
        response = test["response"].where(test["cell"] == test["cell"][0])
        lost = flashes.copy()
        lost["test"] = xr.DataTree(test.assign(response=response.transpose("repeat", ...)))
        model = TrueCells(flashes)
        found, whole = (FlashResponse({}).run(model, data) for data in (lost, flashes))
        assert found["reason"].values.tolist() == ["", NOT_RECORDED]
        for name in ("count_data", "correlation", "ceiling", "silent_data", "silent_both"):
            assert found[name].isel(cell=1).isnull().all()
            xr.testing.assert_allclose(found[name].isel(cell=0), whole[name].isel(cell=0))

    def test_the_outline_is_around_the_cells_subunits(self):
        cells = SubunitRGC(SMALL | {"frames": 100_000, "cells": 2, "height": 12, "width": 12})
        cells = cells.load()
        flashes = NaturalImages({"images": 2}).load(cells)
        result = FlashResponse({}).run(TrueCells(flashes), flashes)
        maps = cells["truth"]["subunit_weight"].sum("subunit")
        for axis in ("y", "x"):
            middle = (maps * maps[axis]).sum(("y", "x")) / maps.sum(("y", "x"))
            np.testing.assert_allclose(result[f"centre_{axis}"], middle, atol=0.4)

    def test_bins_without_a_history_are_left_out_and_without_any_it_is_refused(self, flashes):
        late = FlashResponse({}).run(TrueCells(flashes, lags=BLANK + 4), flashes)
        assert late["from_onset"].values[0] == pytest.approx(3 / RATE)
        with pytest.raises(
            UserError, match=r"needs 60 frames of history.*begin each segment with a blank"
        ):
            FlashResponse({}).run(TrueCells(flashes, lags=60), flashes)

    def test_windows_of_unequal_length_are_refused(self, flashes):
        cut = flashes.copy()
        cut["test"] = xr.DataTree(flashes["test"].to_dataset().isel(frame=slice(0, -3)))
        with pytest.raises(UserError, match="segments of the test have 27 or 30 frames"):
            FlashResponse({}).run(TrueCells(flashes), cut)

    def test_examples_have_all_cells_firing_each_silent_alone_and_all_silent(self):
        counts = np.array([[0, 3, 0, 2, 1], [0, 2, 4, 0, 1]])
        assert _examples(counts) == [1, 2, 3, 0]
        assert _examples(counts[:1]) == [1, 3, 4, 0]

    def test_a_recording_of_ones_own_has_flashes_as_its_test(self, cells, flashes, tmp_path):
        test, train = flashes["test"], cells["train"]
        with h5py.File(tmp_path / "own.h5", "w") as file:
            for name, values in {
                "noise": train["stimulus"],
                "spikes": train["response"],
                "flashes": test["stimulus"],
                "answers": test["response"],
            }.items():
                file[name] = values.values
        own = HDF5.with_options(
            path=tmp_path / "own.h5",
            stimulus="noise",
            response="spikes",
            test_stimulus="flashes",
            test_response="answers",
            test_segment_frames=2 * BLANK + FLASH,
            test_onset=BLANK / RATE,
        ).load()
        np.testing.assert_allclose(own["test"]["from_onset"], test["from_onset"], atol=1e-9)
        np.testing.assert_array_equal(own["test"]["segment"], test["segment"])
        found, expected = (
            FlashResponse({}).run(TrueCells(flashes), data) for data in (own, flashes)
        )
        np.testing.assert_array_equal(found["count_data"], expected["count_data"])
        # The times from the onset stay true when the first frames of each trial are left out.
        collapsed = TemporalCollapse({"cell": 0}).load(own)
        kept = test["from_onset"].values.reshape(40, -1)[:, LAGS - 1 :]
        np.testing.assert_allclose(collapsed["test"]["from_onset"], kept.ravel(), atol=1e-9)


def test_a_pipeline_tests_a_model_of_white_noise_on_images(command, tmp_path):
    (tmp_path / "flashed.yaml").write_text(
        """
name: flashed
datasets:
  cells:
    plugin: subunit_rgc
    with: {frames: 4000, validation_frames: 400, test_frames: 400, threshold: 0.5, cells: 2}
  flashes: {plugin: natural_images, data: cells, with: {images: 12, repeats: 4}}
models:
  ln: {plugin: ln, data: cells}
analyses:
  flash: {plugin: flash_response, models: [ln], data: flashes}
"""
    )
    ended = command("flashed.yaml")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/flashed/*/analyses/flash.nc")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert tree["ln"]["count_model"].sizes == {"cell": 2, "image": 12}
        counts = [
            tree["ln"][f"count_{who}"].transpose("cell", "image") for who in ("model", "data")
        ]
        own = np.corrcoef(*counts)
    assert own[0, 2] > own[0, 3] and own[1, 3] > own[1, 2]
