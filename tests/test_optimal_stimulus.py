"""The stimuli that excite cells and units most, of models whose optimum is known."""

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError
from torch import nn

from retinakit import Model, TorchModel
from retinakit.contracts import UserError, coordinates_of, make_recording, make_split
from retinakit.pipeline.combine import combine
from retinakit.regression import cosine_images
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.optimal_stimulus import OptimalStimulus
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.models.glm import GLM
from retinakit_plugins.models.ln import LN
from retinakit_plugins.models.quadratic import Quadratic
from retinakit_plugins.models.retina_circuit import RetinaCircuit
from retinakit_plugins.models.what_where import WhatWhere

QUICK = {"steps": 60, "seeds": 2, "learning_rate": 0.3}


def recording(cells=2, size=8, frames=400):
    random = np.random.default_rng(0)
    shape = (frames, size, size)
    split = make_split(
        random.choice(np.array([-1, 1], np.int8), shape),
        random.poisson(1.0, (frames, cells)),
        frame_interval=1 / 30,
    )
    return make_recording(dict.fromkeys(("train", "validation", "test"), split))


def ln(kernel, data, offset=0.0):
    """An LN model of given filters (cell, lag, y, x), without a fit."""
    model, cells = LN.with_options(lags=kernel.shape[1]), len(kernel)
    field = coordinates_of(data["train"].to_dataset(), kernel.shape[1])
    parts = {
        "kernel": (("cell", "lag", "y", "x"), kernel.astype(np.float32)),
        "offset": ("cell", np.full(cells, offset)),
        "shape": (("cell", "shape_parameter"), np.zeros((cells, 1))),
        "drive": (("cell", "point"), np.zeros((cells, 2))),
    }
    model.restore(field.assign(parts))
    return model


def smooth_filters(cells=2, lags=4, size=8):
    y, x = np.mgrid[:size, :size]
    course = np.array([0.2, 1.0, -0.7, 0.1])[:lags, None, None]
    centres = [(2, 2), (5, 5)]
    images = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 3) for a, b in centres[:cells]]
    return np.stack([0.5 * course * image for image in images])


def cosine(first, second):
    first, second = np.ravel(first), np.ravel(second)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def contrast(result, cell=0, field=(8, 8)):
    """The contrast of the best stimulus (lag, y, x) in the whole field."""
    one = result.isel({result["response"].dims[0]: cell})
    best = one["stimulus"].isel(seed=int(one["best_seed"])) - float(one["mean_stimulus"])
    places = {dim: np.arange(size) for dim, size in zip("yx", field, strict=True)}
    return best.reindex(places, fill_value=0).values


@pytest.fixture(scope="module")
def data():
    return recording()


@pytest.mark.parametrize("options", [{}, {"norm": 3.0}])
def test_the_optimal_stimulus_of_an_ln_cell_is_its_filter(data, options):
    kernel = smooth_filters()
    result = OptimalStimulus(QUICK | options).run(ln(kernel, data), data)
    assert result["stimulus"].dims == ("cell", "seed", "lag", "y", "x")
    for cell in range(2):
        assert cosine(contrast(result, cell), kernel[cell]) > 0.99
    assert (result["similarity"] > 0.99).all() and (result["warning"] == "").all()
    assert (result["response"] > 2 * result["noise_response"]).all()
    if "norm" in options:
        np.testing.assert_allclose(result["norm"], 3.0, rtol=1e-5)
    best = [result["curve"].sel(scale=scale).values for scale in (-1, 0, 1)]
    np.testing.assert_allclose(best[2], result["response"].max("seed"), rtol=1e-5)
    assert (best[0] < best[1]).all() and (best[1] < best[2]).all()


def test_the_norm_is_that_of_the_training_stimulus_in_the_receptive_field(data):
    kernel = np.zeros((2, 4, 8, 8))
    kernel[0, 1, 2:4, 2:4] = 1  # of ±1 checks, the norm is the root of their number
    kernel[1, 1:3, 2:6, 2:4] = 1
    result = OptimalStimulus(QUICK).run(ln(0.1 * kernel, data), data)
    np.testing.assert_allclose(result["receptive_field_size"], [4, 16], rtol=1e-5)
    np.testing.assert_allclose(result["norm"], [2, 4], rtol=0.01)


def test_the_stimulus_that_separates_two_cells_excites_one_and_inhibits_the_other(data):
    kernel = smooth_filters()
    kernel[1] = 0.7 * kernel[0] + kernel[1]
    result = OptimalStimulus(QUICK | {"cells": [0], "minus": 1}).run(ln(kernel, data), data)
    drives = (kernel * contrast(result)).sum((1, 2, 3))
    assert drives[0] > 1 and drives[1] < 0.3 * drives[0]


def test_all_subunits_of_a_cell_are_excited_at_once(network):
    options = {"frames": 400, "validation_frames": 100, "test_frames": 100, "repeats": 2}
    data = SubunitRGC.with_options(**options).load()
    truth = data["truth"].to_dataset()
    course, subunits = truth["temporal"].values, truth["subunit_weight"].values[0]
    output = np.zeros((1, 7, 7))
    for y, x in [np.argwhere(subunit)[0] for subunit in subunits]:
        output[0, y, x] = 1
    kernel = truth.attrs["contrast"] * course[:, None, None] * np.ones((2, 2))
    threshold = float(truth["threshold"][0])
    cell = network(kernel[None], output=output, output_bias=-threshold)
    result = OptimalStimulus(QUICK | {"diverse": 3}).run(cell, data)
    expected = course[:, None, None] * subunits.sum(0)
    assert cosine(contrast(result), expected) > 0.99
    # The subunits can be excited in different ways, with the response of the level.
    diverse = result["diverse_response"] / result["response"].max()
    assert float(abs(diverse - 0.85).max()) < 0.03
    examples = result["diverse_stimulus"][0] - float(result["mean_stimulus"])
    assert cosine(examples[0], examples[1]) < 0.9


def test_the_optimal_stimulus_of_a_unit_is_its_filter_at_its_position(network, data):
    kernels = np.random.default_rng(1).standard_normal((2, 3, 3, 3))
    model = network(kernels)
    options = QUICK | {"layer": "layer1", "units": [1], "position": [4, 2]}
    result = OptimalStimulus(options).run(model, data)
    assert result["filter"].values.tolist() == [1]
    expected = np.zeros((3, 8, 8))
    expected[:, 4:7, 2:5] = kernels[1]
    assert cosine(contrast(result), expected) > 0.999
    assert float(result["receptive_field_size"][0]) < 27


def energy_cell(data, wave):
    """A quadratic model whose squared filters are two gratings in quadrature."""
    y, x = np.mgrid[:8, :8]
    envelope = np.exp(-((y - 3.5) ** 2 + (x - 3.5) ** 2) / 10)
    phase = wave[0] * y + wave[1] * x
    gabors = np.stack([envelope * np.cos(phase), envelope * np.sin(phase)])
    model = Quadratic.with_options(lags=1, images=64, components=2)
    filters = gabors.reshape(2, 64) @ cosine_images((8, 8), 64).matrix()
    parts = {
        "filter": (
            ("cell", "part", "lag", "image"),
            np.r_[np.zeros((1, 64)), filters][None, :, None],
        ),
        "weight": (("cell", "part"), [[0.0, 0.1, 0.1]]),
        "offset": ("cell", [-1.0]),
        "shape": (("cell", "shape_parameter"), np.zeros((1, 1))),
        "centre": (("y", "x"), np.zeros((8, 8))),
    }
    field = coordinates_of(data["train"].to_dataset().isel(cell=[0]), 1)
    model.restore(field.assign(parts))
    return model


def test_the_optimal_stimulus_of_a_complex_cell_is_a_grating_of_its_wave_vector(data):
    wave = np.array([0.9, 1.6])  # radians per check
    result = OptimalStimulus(QUICK).run(energy_cell(data, wave), data)
    image = contrast(result)[0]
    spectrum = np.abs(np.fft.rfft2(image, (64, 64)))
    y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
    found = 2 * np.pi * np.array([y - 64 * (y > 32), x]) / 64
    np.testing.assert_allclose(found * np.sign(found[1]), wave, atol=0.15)
    # The phase is free, and the response the same for the inverted stimulus.
    assert float(result["curve"].sel(scale=-1)[0] / result["curve"].sel(scale=1)[0]) > 0.99


class Third(TorchModel):
    def build(self, field):
        pixels, cells = field.sizes["y"] * field.sizes["x"], field.sizes["cell"]
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, cells), nn.Softplus())

    def parameters(self):
        return self.field


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Third, {"lags": 1, "steps": 5, "batch": 50, "accelerator": "cpu"}),
        (WhatWhere, WhatWhere.quick | {"steps": 5}),
        (GLM, {"lags": 3, "history_length": 100, "coupling_length": 0}),
    ],
)
def test_every_differentiable_model_has_optimal_stimuli(data, kind, options):
    model = kind(options)
    model.fit(data)
    result = OptimalStimulus(QUICK | {"cells": [1]}).run(model, data)
    assert (result["response"].min("seed") > result["noise_response"]).all()
    if kind is Third:
        assert cosine(contrast(result), model.module[1].weight[1].detach().numpy()) > 0.999


def test_a_stimulus_of_limited_range_has_the_signs_of_the_filter(data):
    kernel = smooth_filters(cells=1)
    options = {"constraint": "range", "range": [-1, 1], "dropout": 0.1, "weight_decay": 1e-5}
    murray = OptimalStimulus(options | {"seeds": 1, "steps": 150, "learning_rate": 0.1})
    stimulus = murray.run(ln(kernel, recording(1)), recording(1))["stimulus"][0, 0].values
    assert np.abs(stimulus).max() <= 1
    strong = np.abs(kernel[0]) > 0.01
    assert (np.sign(stimulus) == np.sign(kernel[0]))[strong].all()
    assert np.abs(stimulus)[strong].min() > 0.9


def test_over_several_frames_the_summed_response_is_maximised(data):
    kernel = np.zeros((2, 4, 8, 8))
    kernel[:, 0, 3, 3] = 0.5
    result = OptimalStimulus(QUICK | {"frames": 9}).run(ln(kernel, data), data)
    assert result["stimulus"].dims == ("cell", "seed", "frame", "y", "x")
    course = contrast(result)[:, 3, 3]
    assert (course[:3] == 0).all()  # frames 0 to 2 are only history
    np.testing.assert_allclose(course[3:], course[3:].mean(), rtol=0.02)


def roughness(image):
    changes = [np.abs(np.diff(image, axis=axis)).sum() for axis in (-2, -1)]
    return sum(changes) / np.linalg.norm(image)


@pytest.mark.parametrize("options", [{"blur": 1.0}, {"total_variation": 0.5}])
def test_smoothed_stimuli_are_smoother(data, options):
    kernel = np.random.default_rng(2).standard_normal((2, 1, 8, 8))
    plain, smooth = (
        contrast(OptimalStimulus(QUICK | more).run(ln(kernel, data), data))
        for more in ({}, options)
    )
    assert roughness(smooth) < 0.8 * roughness(plain)
    assert cosine(smooth, kernel[0]) > 0.3


def test_a_cell_that_ignores_the_stimulus_has_no_optimum_and_says_so(data):
    kernel = smooth_filters()
    kernel[1] = 0
    analysis = OptimalStimulus(QUICK | {"diverse": 2})
    result = analysis.run(ln(kernel, data), data)
    assert result["warning"][0] == "" and "no optimal stimulus" in str(result["warning"][1].item())
    assert result["stimulus"][1].isnull().all() and cosine(contrast(result), kernel[0]) > 0.99
    analysis.plot(xr.DataTree.from_dict({"/ln": combine([((), result)])})).draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": [7]}, "no cell 7; its cells are 0, 1"),
        ({"minus": 9}, "no cell 9"),
        ({"cells": [1], "minus": 1}, "the only cell"),
        ({"frames": 2}, "the clip has 2 frames .* set frames to 4"),
        ({"frames": 1000}, "1000 frames and the training stimulus 400"),
        ({"layer": "layer1"}, "LN has no layers"),
    ],
)
def test_what_cannot_be_searched_is_refused(data, options, message):
    with pytest.raises(UserError, match=message):
        OptimalStimulus(QUICK | options).run(ln(smooth_filters(), data), data)


def test_a_position_outside_the_map_and_a_model_without_gradient_are_refused(network, data):
    options = QUICK | {"layer": "layer1", "position": [9, 0]}
    with pytest.raises(UserError, match=r"position is \[9, 0\] .* has 6 x 6 positions"):
        OptimalStimulus(options).run(network(np.ones((1, 1, 3, 3))), data)
    small = small_recording(frames=200)
    model = SmallModel()
    model.fit(small)
    with pytest.raises(UserError, match="SmallModel has no gradient by the stimulus"):
        OptimalStimulus(QUICK).run(model, small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": [0]}, "set layer"),
        ({"layer": "layer1", "cells": [0]}, "leave out one"),
        ({"constraint": "range", "diverse": 2}, "needs constraint: norm"),
        ({"range": [0, 1]}, "need constraint: range"),
        ({"constraint": "range", "range": [1, 0]}, "not increasing"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        OptimalStimulus(options)


@pytest.fixture(scope="module")
def circuit():
    """A circuit of random weights for clips of 6 frames, and its recording."""
    random, lags, clips = np.random.default_rng(0), 6, 20
    response = np.full((clips * lags, 2), np.nan)
    response[lags - 1 :: lags] = np.eye(2)[np.arange(clips) % 2]
    split = make_split(
        random.integers(0, 2, (clips * lags, 36, 36)).astype(np.uint8),
        response,
        frame_interval=1 / 30,
        segment=np.repeat(np.arange(clips), lags),
    )
    data = make_recording(dict.fromkeys(("train", "validation", "test"), split))
    kinds = dict.fromkeys(("bipolar_types", "amacrine_types", "ganglion_types"), 2)
    sizes = {"bipolar_kernel": 4, "bipolar_stride": 2, "kernel": 3, "stride": 2, "filter_lags": 4}
    model = RetinaCircuit(kinds | sizes | {"lags": lags})
    model.field = coordinates_of(split, lags)
    torch.manual_seed(0)
    model.module = model.build(model.field).eval()
    shown = torch.from_numpy(split["stimulus"].values).float()
    model.module.scale(model.module.clips(shown, None, lags))
    return model, data


def test_a_unit_is_searched_in_its_receptive_field_with_the_result_of_the_whole_field(
    circuit, monkeypatch
):
    model, data = circuit
    options = QUICK | {"layer": "ganglion", "units": [0], "seeds": 1, "norm": 10.0}
    sizes = []
    gradient = RetinaCircuit.stimulus_gradient

    def counted(self, split, weight, layer=None):
        sizes.append(split["stimulus"].shape[1:])
        return gradient(self, split, weight, layer)

    monkeypatch.setattr(RetinaCircuit, "stimulus_gradient", counted)
    small = OptimalStimulus(options).run(model, data)
    assert set(sizes[:2]) == {(36, 36)} and max(max(size) for size in sizes[2:]) == 16
    monkeypatch.setattr(RetinaCircuit, "cropped", Model.cropped)
    whole = OptimalStimulus(options).run(model, data)
    assert sizes[-1] == (36, 36)
    best = [one["stimulus"].values - float(one["mean_stimulus"]) for one in (small, whole)]
    assert cosine(*best) > 0.98
    np.testing.assert_allclose(small["response"], whole["response"], rtol=0.02)


def test_the_response_of_a_clip_is_summed_from_its_first_frame(circuit):
    model, data = circuit
    clip = data["train"].to_dataset().isel(frame=slice(0, 6))
    shown = torch.from_numpy(clip["stimulus"].values).float()
    weight = np.zeros((1, 2, 8, 8))
    weight[0, 1, 3, 4] = 1
    value, slope = model.course_gradient(clip, weight, "ganglion")
    expected = model.module.courses(shown, 6)["ganglion"][0, :, 1, 3, 4].detach()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert value[:5].sum() > 0 and np.abs(slope[0]).max() > 0
    murray = {
        "layer": "ganglion", "units": [1], "position": [3, 4], "whole_clip": True,
        "constraint": "range", "range": [-1, 1], "dropout": 0.1, "weight_decay": 1e-5,
        "learning_rate": 0.05, "steps": 40, "seeds": 1,
    }  # fmt: skip
    result = OptimalStimulus(murray).run(model, data)
    assert result["stimulus"].dims == ("ganglion", "seed", "frame", "y", "x")
    assert (result["response"][:, 0] > 1.5 * result["noise_response"]).all()
    with pytest.raises(UserError, match="some segments do not have 6 frames"):
        model.course_gradient(clip.isel(frame=slice(1, None)), weight, "ganglion")


def test_a_model_without_activity_in_early_frames_refuses_whole_clips(network, data):
    options = QUICK | {"layer": "layer1", "whole_clip": True}
    with pytest.raises(UserError, match="only in frames with a full history"):
        OptimalStimulus(options).run(network(np.ones((1, 2, 3, 3))), data)


def test_covariates_have_their_mean():
    with_pupil = small_recording(frames=300, covariates=True)
    model = GLM({"lags": 3, "history_length": 0, "coupling_length": 0})
    model.fit(with_pupil)
    result = OptimalStimulus(QUICK | {"cells": [0], "scales": [0]}).run(model, with_pupil)
    parts = model.parameters().isel(cell=0)
    mean = with_pupil["train"]["covariates"].values.mean(0)
    expected = np.exp(parts["offset"].item() + parts["covariate_weight"].values @ mean)
    assert float(result["curve"][0, 0]) == pytest.approx(expected, rel=0.05)
