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
from retinakit_plugins.analyses.score import Score
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


def test_a_rate_of_0_or_less_with_a_spike_scores_minus_infinity_with_the_reason(linear, recording):
    test = recording["test"].to_dataset()
    spikes = test["response"].sum("repeat") > 0
    impossible = ((linear.predict(test) <= 0) & spikes).any("frame").values
    assert impossible.any()
    result = Score({"draws": 0}).run(linear, recording)
    assert (result["reason"] == scores.SPIKE_AT_ZERO_RATE).values.tolist() == impossible.tolist()
    assert np.isneginf(result["bits_per_spike"]).values.tolist() == impossible.tolist()
    assert np.isposinf(result["deviance"]).values.tolist() == impossible.tolist()
    assert (result["warning"].str.contains("rate of 0 or less")).values.tolist() == [True, True]
    assert result["correlation"].notnull().all()


def test_a_floor_of_the_rate_gives_finite_scores_and_is_named(linear, recording):
    score = Score({"draws": 0, "rate_floor": 0.01})
    result = score.run(linear, recording)
    floored = linear.predict(recording["test"]).clip(0.01)
    expected = scores.bits_per_spike(floored, recording["test"]["response"])
    np.testing.assert_allclose(result["bits_per_spike"], expected)
    assert np.isfinite(expected).all()
    assert result["bits_per_spike"].attrs["rate_floor"] == 0.01
    assert "below 0.01 spikes per bin count as 0.01" in score.caption(
        xr.DataTree.from_dict({"/ridge": result})
    )


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
    options = LN.quick
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
