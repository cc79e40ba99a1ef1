"""What every model's `predict` takes and gives, whatever the model is."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import RecordingError, UserError, coordinates_of, full_history, make_split
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.models.ln import LN
from retinakit_plugins.models.regression import OLS


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


def random_ln(split):
    model = LN({"lags": 7})
    model.field = coordinates_of(split, 7)
    model.module = model.build(model.field).eval()
    return model


def random_ols(split):
    field = coordinates_of(split, 7)
    model = OLS({"lags": 7})
    kernel = np.random.default_rng(1).standard_normal((2, 7, 5, 4))
    model.restore(field.assign(kernel=(("cell", "lag", "y", "x"), kernel), offset=("cell", [0, 1])))
    return model


@pytest.mark.parametrize("make", [random_ln, random_ols])
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
    with pytest.raises(UserError, match=r"respond of the SmallModel gave .*\(3, 2\).*frame, cell"):
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
