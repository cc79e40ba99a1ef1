"""Linear models predict negative rates, which have no Poisson likelihood and give no spikes."""

import numpy as np
import pytest
import xarray as xr

from retinakit import scores
from retinakit.contracts import RecordingError, UserError
from retinakit.simulation import poisson_spikes
from retinakit.testing import small_recording
from retinakit_plugins.analyses.data_efficiency import DataEfficiency
from retinakit_plugins.analyses.model_receptive_field import ModelReceptiveField
from retinakit_plugins.analyses.raster import Raster
from retinakit_plugins.analyses.score import NEGATIVE, Score
from retinakit_plugins.models.ln import LN
from retinakit_plugins.models.regression import Ridge


@pytest.fixture(scope="module")
def recording():
    return small_recording(frames=400)


@pytest.fixture(scope="module")
def linear(recording):
    model = Ridge({"lags": 3, "penalties": [1.0]})
    model.fit(recording)
    assert all((model.predict(recording[name]) < 0).any() for name in ("train", "test"))
    return model


@pytest.mark.parametrize(
    "score", [scores.bits_per_spike, scores.poisson_deviance, scores.poisson_loss]
)
def test_a_negative_prediction_has_no_poisson_score(score):
    counts = xr.DataArray([[1.0, 2.0], [3.0, 1.0]], dims=("frame", "cell"))
    predicted = xr.DataArray([[-0.1, 2.0], [3.0, 1.0]], dims=("frame", "cell"))
    assert np.isnan(score(predicted, counts)).values.tolist() == [True, False]


def test_the_score_names_the_reason(linear, recording):
    result = Score({"draws": 0}).run(linear, recording)
    negative = (linear.predict(recording["test"]) < 0).any("frame").values
    assert (result["reason"] == NEGATIVE).values.tolist() == negative.tolist()
    assert np.isnan(result["bits_per_spike"]).values.tolist() == negative.tolist()
    assert result["correlation"].notnull().all()
    tree = xr.DataTree.from_dict({"/ridge": result})
    assert Score({}).plot(tree) and Score({}).caption(tree)


def test_a_negative_rate_gives_no_spikes(linear, recording):
    shown = Raster({"frames": 40}).run(linear, recording)
    assert (shown["rate_model"] < 0).any()
    assert (shown["model"].where(shown["rate_model"] < 0, 0) == 0).all()
    field = ModelReceptiveField({"trials": 50}).run(linear, recording)
    rate = linear.predict(recording["train"]).clip(0).sum("frame")
    drawn = field["spikes"].sel(source="model")
    np.testing.assert_allclose(drawn, rate, rtol=0.1)
    assert DataEfficiency({"frames": 40}).run(linear, recording)["correlation"].notnull().all()


def test_many_spikes_in_a_bin_are_counted():
    assert abs(poisson_spikes([1e6], 1, 0).item() - 1e6) < 1e4
    with pytest.raises(UserError, match="no spikes can be drawn"):
        poisson_spikes([np.inf], 1, 0)


def test_a_poisson_loss_refuses_responses_centred_on_0(recording):
    centred = xr.DataTree.from_dict(
        {
            name: split.to_dataset().assign(
                response=split["response"] - split["response"].mean("frame", keep_attrs=True)
            )
            for name, split in recording.children.items()
            if name != "truth"
        }
    )
    options = LN.quick | {"steps": 20}
    with pytest.raises(RecordingError, match=r"cell 0 are centred on 0 .* set loss: mse"):
        LN(options).fit(centred)
    model = LN(options | {"loss": "mse"})
    assert np.isfinite(model.fit(centred)["validation_loss"]).all()


def test_responses_that_are_no_spike_counts_are_drawn_as_traces(linear, recording):
    traces = recording.copy(deep=True)
    traces["test"]["response"].attrs["units"] = "dF/F"
    result = Raster({"frames": 40}).run(linear, traces)
    assert "model" not in result
    tree = xr.DataTree.from_dict({"/ridge": result})
    figure = Raster({}).plot(tree)
    assert [axis.get_ylabel() for axis in figure.axes] == ["dF/F"] * 2
    assert [axis.get_title("left") for axis in figure.axes] == ["cell 0", "cell 1"]
    assert "Poisson" not in Raster({}).caption(tree)
