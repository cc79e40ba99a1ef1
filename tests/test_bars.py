"""Stimuli of bars and of a full field, which have one row or one check."""

from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import xarray as xr
from matplotlib.figure import Figure

from retinakit.contracts import SPLITS, UserError, make_recording, make_split
from retinakit.layers import laplacian, roughness
from retinakit.report import draw_field, in_time
from retinakit.spikes import stc
from retinakit_plugins.analyses.features import Features
from retinakit_plugins.analyses.stnmf import STNMF
from retinakit_plugins.datasets.hdf5 import HDF5
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.what_where import WhatWhere

FRAMES, BARS = 500, 12


def bars_recording(shape: tuple[int, int], frames: int = 2000) -> xr.DataTree:
    """A cell that sums two rectified pairs of bars (or a check) of the frame before."""
    random = np.random.default_rng(0)
    splits = {}
    for name, length in zip(SPLITS, (frames, frames // 4, frames // 4), strict=True):
        movie = random.choice(np.array([-1, 1], np.int8), (length, *shape))
        flat = movie.reshape(length, -1).astype(float)
        drive = [np.roll(np.maximum(flat[:, i : i + 2].sum(1), 0), 1) for i in (3, 6)]
        rate = 0.4 * (drive[0] + drive[1]) if flat.shape[1] > 1 else np.exp(np.roll(flat[:, 0], 1))
        splits[name] = make_split(
            movie, random.poisson(rate)[:, None], frame_interval=0.02, rate=rate[:, None]
        )
    return make_recording(splits)


class TestReading:
    """Arrays of one and two dimensions in a file."""

    @pytest.fixture
    def folder(self, tmp_path: Any) -> Any:
        random = np.random.default_rng(0)
        bars, light = random.standard_normal((FRAMES, BARS)), random.standard_normal(FRAMES)
        spikes = random.poisson(1, (FRAMES, 2))
        with h5py.File(tmp_path / "some.h5", "w") as file:
            file["bars"], file["rows"], file["light"] = bars, bars.T, light
            file["spikes"], file["one"] = spikes, spikes[:, 0]
        old = {"bars": bars, "rows": bars.T, "light": light[:, None], "across": light[None]}
        scipy.io.savemat(tmp_path / "old.mat", old | {"spikes": spikes, "one": spikes[:, :1]})
        return tmp_path

    @pytest.mark.parametrize("file", ["some.h5", "old.mat"])
    @pytest.mark.parametrize(
        ("stimulus", "more", "shape"),
        [
            ("bars", {}, (1, BARS)),
            ("bars", {"stimulus_dims": ["frame", "y"]}, (BARS, 1)),
            ("rows", {"stimulus_dims": ["x", "frame"]}, (1, BARS)),
            ("light", {}, (1, 1)),
        ],
    )
    def test_bars_and_full_fields_get_y_and_x(self, folder, file, stimulus, more, shape):
        options = {"path": folder / file, "stimulus": stimulus, "response": "spikes"}
        recording = HDF5(options | more).load()
        assert recording["train"]["stimulus"].shape == (400, *shape)
        with h5py.File(folder / "some.h5") as stored:
            expected = stored["light" if stimulus == "light" else "bars"][400:450]
        found = recording["validation"]["stimulus"].values
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)

    @pytest.mark.parametrize(("stimulus", "shape"), [("rows", (1, BARS)), ("across", (1, 1))])
    def test_frames_are_the_last_dimension_in_matlab_if_it_is_as_long_as_the_response(
        self, folder, stimulus, shape
    ):
        options = {"path": folder / "old.mat", "stimulus": stimulus, "response": "one"}
        assert HDF5(options).load()["train"]["stimulus"].shape == (400, *shape)

    def test_a_response_of_one_dimension_is_that_of_one_cell(self, folder):
        options = {"path": folder / "some.h5", "stimulus": "light", "response": "one"}
        assert HDF5(options).load()["train"]["response"].shape == (400, 1)

    def test_bars_stay_in_their_file_if_they_are_many(self, folder, monkeypatch):
        options = {"path": folder / "some.h5", "stimulus": "bars", "response": "spikes"}
        expected = HDF5(options).load()["train"]["stimulus"].values
        monkeypatch.setattr("retinakit_plugins.datasets.hdf5.IN_MEMORY", 10)
        found = HDF5(options).load()["train"]["stimulus"]
        for part in (slice(5, 9), 5, (slice(None), 0, 3), ([1, 2], 0), (slice(2), slice(0))):
            np.testing.assert_array_equal(found[part], expected[part])

    def test_frames_in_another_dimension_need_their_order(self, folder):
        options = {"path": folder / "some.h5", "stimulus": "rows", "response": "spikes"}
        with pytest.raises(UserError, match=r"of shape \(12, 500\), so give the order .*_dims"):
            HDF5(options).load()


@pytest.mark.parametrize("shape", [(FRAMES,), (FRAMES, BARS)])
def test_make_split_takes_arrays_of_one_and_two_dimensions(shape):
    split = make_split(np.zeros(shape), np.zeros((FRAMES, 1)), frame_interval=0.02)
    assert split["stimulus"].shape == (FRAMES, 1, *shape[1:], *[1] * (2 - len(shape)))


@pytest.mark.parametrize("shape", [(1, BARS), (BARS, 1), (1, 1)])
@pytest.mark.parametrize("rank", [None, 1])
def test_a_cnn_has_kernels_of_the_extent_of_its_stimulus(shape, rank):
    recording = bars_recording(shape)
    model = CNN({"lags": 3, "filters": 2, "steps": 20, "layers": 2, "rank": rank})
    model.fit(recording)
    parameters = model.parameters()
    expected = tuple(7 if side > 1 else 1 for side in shape)
    assert parameters["kernel"].shape == (2, 3, *expected)
    assert parameters["kernel_2"].shape == (2, 2, *(3 if side > 1 else 1 for side in shape))
    shown = recording["test"]["stimulus"]
    array = shown.values.reshape(len(shown), -1) if max(shape) > 1 else shown.values.ravel()
    np.testing.assert_array_equal(model.predict(array), model.predict(recording["test"]))


def test_a_cnn_finds_the_two_pairs_of_bars():
    recording = bars_recording((1, BARS), frames=6000)
    model = CNN({"lags": 2, "filters": 2, "kernel": 5, "steps": 300, "learning_rate": 0.03})
    model.fit(recording)
    test = recording["test"].to_dataset()
    assert np.corrcoef(model.predict(test)[1:, 0], test["rate"][1:, 0])[0, 1] > 0.95


@pytest.mark.parametrize("shape", [(1, BARS), (BARS, 1), (1, 1)])
@pytest.mark.parametrize("readout", ["factorized", "gaussian", "full"])
def test_what_where_has_masks_of_one_row(shape, readout):
    options = {"filters": [2, 2], "kernels": [3, 3], "lags": 2, "steps": 5, "readout": readout}
    model = WhatWhere(options | {"smoothness": 0.1, "group_sparsity": 0.1})
    model.fit(bars_recording(shape))
    weight = model.parameters()["output_weight" if readout == "full" else "mask"]
    assert weight.shape[-2:] == tuple(side - 4 if side > 1 else 1 for side in shape)


def test_kernels_of_one_row_have_the_second_derivative_along_it():
    row = torch.randn(1, 1, 1, 9)
    padded = torch.nn.functional.pad(row[0, 0, 0], (1, 1))
    second = padded[2:] + padded[:-2] - 2 * padded[1:-1]
    torch.testing.assert_close(laplacian(row)[0, 0, 0], second)
    torch.testing.assert_close(roughness(row, normalise=False), (4 * second**2).sum())
    torch.testing.assert_close(roughness(row), roughness(row.mT))
    assert roughness(torch.ones(1, 1, 1, 1)) == 0


LAG = {"lag": np.arange(3), "lag_time": ("lag", np.arange(3) * 0.01)}


class TestDrawing:
    def test_a_full_field_is_a_course_in_time(self):
        axis = Figure().subplots()
        draw_field(axis, xr.DataArray([[[1.0]], [[2.0]], [[3.0]]], LAG, ("lag", "y", "x")))
        assert axis.lines[-1].get_xydata().tolist() == [[-20, 3], [-10, 2], [0, 1]]

    @pytest.mark.parametrize("dims", [("lag", "y", "x"), ("lag", "x", "y")])
    def test_bars_are_an_image_of_position_and_time(self, dims):
        axis = Figure().subplots()
        values = np.arange(12.0).reshape(3, 1, 4)
        draw_field(axis, xr.DataArray(values, LAG, dims))
        (image,) = axis.collections
        np.testing.assert_array_equal(image.get_array(), values[::-1, 0].T)  # time runs to 0
        assert axis.get_xlim() == (-25, 5)

    def test_a_movie_is_an_image_at_the_lag_of_most_power(self):
        axis = Figure().subplots()
        values = np.arange(24.0).reshape(3, 2, 4) * [[[1]], [[-5]], [[1]]]
        draw_field(axis, xr.DataArray(values, LAG, ("lag", "y", "x")))
        (image,) = axis.collections
        np.testing.assert_array_equal(image.get_array(), values[1])

    def test_a_map_of_bars_is_a_curve_and_one_of_a_check_a_point(self):
        axis = Figure().subplots()
        draw_field(axis, xr.DataArray([[1.0, 2.0]], dims=("map_y", "map_x")))
        draw_field(axis, xr.DataArray([[3.0]], dims=("map_y", "map_x")))
        assert [line.get_ydata().tolist() for line in axis.lines[1::2]] == [[1, 2], [3]]

    def test_separable_filters_of_movies_stay_maps(self):
        temporal = xr.DataArray([1.0, 2.0], dims="lag")
        assert "lag" not in in_time(xr.DataArray(np.ones((2, 2)), dims=("y", "x")), temporal).dims


def test_the_feature_of_a_full_field_is_on_or_off():
    recording = bars_recording((1, 1))
    model = CNN({"lags": 3, "filters": 1, "steps": 20})
    model.fit(recording)
    result = Features({"samples": 500}).run(model, recording)
    assert result["kind"].item() == 1


def test_stnmf_has_at_most_two_modules_for_each_check():
    with pytest.raises(UserError, match="the field of 1 checks allows at most 2"):
        STNMF({"lags": 3, "modules": 4}).run(bars_recording((1, 1)))


def test_the_covariance_of_a_full_field_has_its_lags():
    split = bars_recording((1, 1))["train"].to_dataset()
    assert stc(split, 4, prior=True)["stc"].shape == (4, 4)
