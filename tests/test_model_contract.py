"""What every model's `predict` takes and gives, whatever the model is."""

import numpy as np
import pytest
import torch
import xarray as xr

from retinakit.contracts import (
    SPLITS,
    RecordingError,
    UserError,
    coordinates_of,
    full_history,
    make_recording,
    make_split,
)
from retinakit.scores import correlation
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.rectified_linear import LNP
from retinakit_plugins.models.regression import OLS
from retinakit_plugins.models.what_where import WhatWhere


@pytest.fixture(scope="module")
def recording():
    return small_recording(frames=300)


@pytest.fixture(scope="module")
def model(recording):
    fitted = SmallModel()
    fitted.fit(recording)
    return fitted


def long_split(frames, segment=None):
    stimulus = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (frames, 5, 4))
    return make_split(stimulus, np.ones((frames, 2)), frame_interval=0.02, segment=segment)


def random_lnp(split):
    model = LNP({"lags": 7})
    model.field = coordinates_of(split, 7)
    model.module = model.build(model.field).eval()
    return model


def random_ols(split):
    field = coordinates_of(split, 7)
    model = OLS({"lags": 7})
    kernel = np.random.default_rng(1).standard_normal((2, 7, 5, 4))
    model.restore(field.assign(kernel=(("cell", "lag", "y", "x"), kernel), offset=("cell", [0, 1])))
    return model


@pytest.mark.parametrize("make", [random_lnp, random_ols])
def test_a_long_prediction_is_that_of_its_pieces(make):
    split = long_split(9000)
    model = make(split)
    whole = model.predict(split).values
    known = full_history(split["segment"], 7)
    for first in (0, 4000, 8190):  # across the ends of a model's blocks, and of the stimulus
        piece = model.predict(split.isel(frame=slice(first, first + 810))).values
        np.testing.assert_allclose(piece[6:], whole[first : first + 810][6:], rtol=1e-5, atol=1e-6)
    assert np.isfinite(whole).all(1).tolist() == known.tolist()


def test_a_split_its_stimulus_and_its_numbers_are_predicted_alike(model, recording):
    test = recording["test"].to_dataset()
    whole = model.predict(test)
    xr.testing.assert_identical(model.predict(recording["test"]), whole)
    xr.testing.assert_identical(model.predict(test["stimulus"]), whole)
    one_segment = model.predict(test["stimulus"].values)
    xr.testing.assert_allclose(
        one_segment, model.predict(test.assign_coords(segment=test["segment"] * 0))
    )
    assert {"cell", "time", "segment"} == set(one_segment.coords)


def test_a_prediction_keeps_what_is_known_of_a_frame(model, recording):
    test = recording["test"].to_dataset()
    contrast = ("frame", np.linspace(0, 1, test.sizes["frame"]))
    predicted = model.predict(test.assign_coords(contrast=contrast))
    assert predicted["contrast"].dims == ("frame",)
    assert predicted.attrs["units"] == "spikes per bin"
    assert predicted.dims == ("frame", "cell")


def test_a_prediction_has_the_units_of_the_response(recording):
    signed = recording.copy(deep=True)
    for split in ("train", "validation", "test"):
        signed[f"{split}/response"].attrs["units"] = "ΔF/F"
    model = SmallModel()
    model.fit(signed)
    assert model.predict(signed["test"]).attrs["units"] == "ΔF/F"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: split.isel(y=slice(1, None)), "'y'.*crop it"),
        (lambda split: split.assign_attrs(frame_interval=0.5), "frame_interval.*resample"),
        (lambda split: split.drop_vars("stimulus"), "no variable 'stimulus'"),
        (lambda split: split["stimulus"].transpose("y", "x", "frame"), r"give \(frame"),
        (lambda split: split["stimulus"].values[0], "array of 2 dimensions"),
        (lambda split: "test", "type <U4"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(model, recording, change, message):
    with pytest.raises(RecordingError, match=message):
        model.predict(change(recording["test"].to_dataset()))


def test_a_response_of_another_shape_is_a_fault_of_the_model(model, recording, monkeypatch):
    monkeypatch.setattr(SmallModel, "respond", lambda self, split: np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"respond.. of the SmallModel returned .*\(3, 2\)"):
        model.predict(recording["test"])


def test_a_model_without_layers_says_so(model, recording):
    assert model.layers() == {}
    for ask in (
        lambda: model.activity(recording["test"], "layer1"),
        lambda: model.without("layer1", [0]),
    ):
        with pytest.raises(UserError, match="SmallModel has no layers"):
            ask()


def test_a_model_of_one_recording_has_no_others(model):
    assert model.recordings == ()
    with pytest.raises(UserError, match="not fitted to a recording named 'left'"):
        model.of("left")


def test_a_decision_is_a_response_of_classes_at_one_frame():
    """A task is fitted and scored at the frames of the decisions, as any other recording."""

    def trials(seed):
        random = np.random.default_rng(seed)
        side = random.integers(0, 2, 80)
        stimulus = random.standard_normal((480, 2, 2))
        stimulus[5::6, :, 0] += np.where(side, 3, -3)[:, None]  # brighter on the left, or darker
        response = np.full((480, 2), np.nan)
        response[5::6] = np.eye(2)[1 - side]
        return make_split(
            stimulus,
            response,
            frame_interval=0.05,
            segment=np.repeat(np.arange(80), 6),
            cell=["left", "right"],
            units="choice",
            trial={"side": np.repeat(side, 6)},
        )

    task = make_recording({name: trials(seed) for seed, name in enumerate(SPLITS)})
    model = SmallModel()
    model.fit(task)
    predicted = model.predict(task["test"])
    decisions = predicted[5::6]
    chosen = np.where(decisions["side"], "left", "right")
    assert (decisions.idxmax("cell") == chosen).mean() > 0.95
    assert predicted.attrs["units"] == "choice"
    assert (correlation(predicted, task["test"]["response"]) > 0.8).all()


LAYERED = [
    CNN({"lags": 2, "filters": 3, "kernel": 3, "layers": 2, "deeper_padding": "valid"}),
    CNN({"lags": 2, "filters": 3, "kernel": 3, "rank": 1, "stride": 2}),
    WhatWhere(
        {
            **{"lags": 2, "filters": [3, 4], "kernels": [3, 2], "normalisation": "batch"},
            **{"activation": "softplus", "offset": True},
        }
    ),
]


@pytest.fixture(params=LAYERED, ids=["cnn", "separable cnn", "what_where"])
def layered(request):
    """A network with random weights, and a split of the size that it takes."""
    split = make_split(
        np.random.default_rng(0).standard_normal((40, 9, 8)),
        np.ones((40, 2)),
        frame_interval=0.02,
        segment=np.repeat([0, 1], 20),
    )
    model = type(request.param)(request.param.config)
    model.field = coordinates_of(split, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.module = model.build(model.field).eval()
        for weights in model.module.parameters():
            weights.data = torch.randn(weights.shape) / 3
    return model, split


def test_an_activity_has_the_frames_and_the_units(layered):
    model, split = layered
    known = full_history(split["segment"], 2)
    for layer, unit in model.layers().items():
        activity = model.activity(split, layer)
        assert activity.dims[:2] == ("frame", unit)
        assert np.isnan(activity[~known]).all() and (activity[known] >= 0).all()
        xr.testing.assert_equal(activity["segment"], split["segment"])
        piece = model.activity(split["stimulus"][10:30].values, layer)
        np.testing.assert_allclose(piece[1:10], activity[11:20], rtol=1e-5, atol=1e-6)


def test_the_prediction_is_read_from_the_last_layer(layered):
    model, split = layered
    activity = model.activity(split, list(model.layers())[-1])[1:20]
    parameters = model.parameters()
    if "output_weight" in parameters:
        drive = np.einsum("tkyx,ckyx->tc", activity, parameters["output_weight"])
        drive = parameters["output_b"].values * (drive + parameters["output_bias"].values)
        expected = parameters["output_a"].values * np.logaddexp(0, drive)
    else:
        mask, weight = parameters["mask"], parameters["feature_weight"]
        drive = np.einsum("tkyx,cyx,ck->tc", activity, mask, weight)
        expected = np.logaddexp(0, drive + parameters["output_bias"].values)
    np.testing.assert_allclose(model.predict(split)[1:20], expected, rtol=1e-4, atol=1e-5)


def test_silent_units_are_0_and_the_others_of_their_layer_as_before(layered, tmp_path):
    model, split = layered
    before = {layer: model.activity(split, layer) for layer in model.layers()}
    for layer, unit in model.layers().items():
        silenced = model.without(layer, [0, 2])
        silenced.save(tmp_path / layer)
        for one in (silenced, type(model).load(tmp_path / layer)):
            after = one.activity(split, layer)
            assert (after.isel({unit: [0, 2]}).dropna("frame") == 0).all()
            xr.testing.assert_equal(after.isel({unit: 1}), before[layer].isel({unit: 1}))
            assert not np.allclose(one.predict(split)[1:20], model.predict(split)[1:20])
        xr.testing.assert_identical(model.activity(split, layer), before[layer])
        xr.testing.assert_identical(model.without(layer, []).predict(split), model.predict(split))


def test_all_units_silent_leave_a_constant_prediction(layered):
    model, split = layered
    layer, unit = list(model.layers().items())[-1]
    units = range(model.activity(split, layer).sizes[unit])
    predicted = model.without(layer, units).predict(split).dropna("frame")
    np.testing.assert_array_equal(predicted, predicted[[0] * len(predicted)])


def test_a_layer_or_unit_that_is_not_there_is_refused(layered):
    model, split = layered
    with pytest.raises(UserError, match=r"has no layer 'layer7'; did you mean .*'layer1'"):
        model.activity(split, "layer7")
    with pytest.raises(UserError, match="has 3 units and there is no unit 5; count them from 0"):
        model.without("layer1", [1, 5])
    with pytest.raises(UserError, match="not fitted"):
        type(model)(model.config).without("layer1", [0])
