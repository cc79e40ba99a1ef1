"""Cells that were not recorded in the test: their scores are NaN, with the reason."""

import numpy as np
import pytest
import xarray as xr

from retinakit import scores
from retinakit.contracts import FittedModel
from retinakit.pipeline.combine import combine
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.data_efficiency import DataEfficiency
from retinakit_plugins.analyses.pruning import Pruning
from retinakit_plugins.analyses.raster import Raster
from retinakit_plugins.analyses.readout_table import ReadoutTable
from retinakit_plugins.analyses.score import Score
from retinakit_plugins.analyses.transfer import Transfer
from retinakit_plugins.models.cnn import CNN

LOST = 1


def without(recording, cell, splits=("validation", "test")):
    """The recording with a cell that was not recorded in some splits."""
    changed = recording.copy(deep=True)
    for name in splits:
        split = changed[name].to_dataset()
        response = split["response"].where(split["cell"] != split["cell"][cell])
        changed[name] = xr.DataTree(
            split.assign(response=response.transpose(*split["response"].dims))
        )
    return changed


@pytest.fixture(scope="module")
def recording():
    return small_recording(frames=400)


@pytest.fixture(scope="module")
def lost(recording):
    return without(recording, LOST)


class Positive(SmallModel):
    """A model whose rates are above 0, so that all scores are finite."""

    def respond(self, split):
        return np.maximum(super().respond(split), 0.01)


@pytest.fixture(scope="module")
def fitted(recording):
    model = Positive()
    model.fit(recording)
    return model


@pytest.mark.parametrize("analysis", [Score, Raster, DataEfficiency])
def test_a_lost_cell_has_no_score_and_the_others_have_theirs(analysis, fitted, recording, lost):
    whole, found = (analysis(analysis.quick).run(fitted, data) for data in (recording, lost))
    assert "reason" not in whole
    assert found["reason"][LOST] == scores.NOT_RECORDED
    assert np.isnan(found["correlation"][LOST])
    kept = [cell for cell in range(found.sizes["cell"]) if cell != LOST]
    assert (found["reason"][kept] == "").all()
    for variable in found.data_vars:
        if variable not in ("reason", "warning") and whole[variable].dims == ("cell",):
            xr.testing.assert_allclose(found[variable][kept], whole[variable][kept])
    assert analysis(analysis.quick).plot(xr.DataTree.from_dict({"/model": combine([((), found)])}))


def test_pruning_gives_a_lost_cell_no_correlation(lost):
    model = CNN({"lags": 2, "filters": 2, "kernel": 3, "steps": 2, "check_every": 1})
    model.fit(lost)
    against = Pruning({"draws": 1}).run(model, lost)["correlation"].sel(against="response")
    assert against.isel(cell=LOST).isnull().all()
    assert against.drop_isel(cell=LOST).notnull().all()


def test_the_table_says_why_and_a_mean_over_cells_leaves_the_lost_one_out(fitted, recording, lost):
    runs = [Score({"draws": 0}).run(fitted, data) for data in (recording, lost)]
    points = [((("data", name),), run) for name, run in zip("ab", runs, strict=True)]
    result = xr.DataTree.from_dict({"/model": combine(points)})
    table = Score({}).table(result).set_index(["data", "cell"])
    cell = recording["train"]["cell"].values[LOST]
    assert table.loc[("b", cell), "reason"] == scores.NOT_RECORDED
    assert (table.drop(index=[("b", cell)])["reason"] == "").all()
    read = ReadoutTable({"columns": "data"}).run({"score": result})
    cells = recording["train"].sizes["cell"]
    assert read["cells"].values.tolist() == [[cells, cells - 1]]
    kept = runs[1]["correlation"].drop_isel(cell=LOST)
    assert float(read["value"][0, 1]) == pytest.approx(float(kept.mean()))


def test_transfer_to_a_lost_cell_has_no_score(recording):
    members = []
    for cell in range(2):
        one = xr.DataTree.from_dict(
            {
                name: recording[name].to_dataset().isel(cell=[cell])
                for name in ("train", "validation", "test")
            }
        )
        model = SmallModel()
        model.fit(one)
        shown = without(one, 0) if cell == LOST else one
        members.append(Member(cell, model, shown))
    result = Transfer({"frames": 20}).run(members)
    assert result["correlation"].sel(data_of=f"cell {LOST}").isnull().all()
    assert result["correlation"].sel(data_of="cell 0").notnull().all()
    assert result["reason"].values.tolist() == [["", scores.NOT_RECORDED]]
    assert np.isfinite(result["mean_self"]).all()


def test_transfer_of_a_model_with_a_missing_prediction_has_no_mean(recording):
    class Holed(Positive):
        def respond(self, split):
            rate = super().respond(split)
            rate[-3] = np.nan
            return rate

    members = []
    for cell, kind in enumerate((Positive, Positive, Holed)):
        one = recording.map_over_datasets(lambda d: d.isel(cell=[0]) if "cell" in d.dims else d)
        model = kind()
        model.fit(one)
        members.append(Member(cell, model, one))
    result = Transfer({"frames": 20}).run(members[:2])
    assert np.isfinite(result["mean_transfer"]).all() and (result["reason"] == "").all()
    result = Transfer({"frames": 20}).run(members)
    assert result["correlation"].isnull().sum("data_of").values.tolist() == [[0, 0, 3]]
    assert (result["reason"] == scores.NOT_PREDICTED).all()
    assert result["mean_transfer"].isnull().all() and result["mean_self"].isnull().all()


class Member(FittedModel):
    """A member of a family that needs no store."""

    def __init__(self, cell, model, recording):
        class Source:
            def model(self):
                return model

            def recording(self):
                return recording

        super().__init__("model", {"cell": cell}, Source(), {"cell": cell})


def test_why_there_is_no_score():
    frames = np.arange(10.0)
    predicted = np.stack([frames, frames, frames, np.ones(10), frames], 1)
    observed = np.stack([frames**2, np.full(10, np.nan), np.zeros(10), frames, frames], 1)
    predicted[:5], observed[5:, 4] = np.nan, np.nan
    dims = ("frame", "cell")
    found = scores.reason(xr.DataArray(predicted, dims=dims), xr.DataArray(observed, dims=dims))
    assert found.values.tolist() == [
        "",
        scores.NOT_RECORDED,
        "the response is constant",
        "the prediction is constant",
        "no response in a frame with a full history",
    ]
    missing = scores.correlation(*(xr.DataArray(a, dims=dims) for a in (predicted, observed)))
    assert (missing.isnull() == (found != "")).all()


def test_the_interval_is_that_of_correlations_of_blocks_of_frames():
    random = np.random.default_rng(0)
    observed = xr.DataArray(random.poisson(2.0, (300, 3)).astype(float), dims=("frame", "cell"))
    predicted = observed + random.standard_normal((300, 3))
    predicted[:20], observed[50:120, 1], observed[:, 2] = np.nan, np.nan, 3.0
    predicted = predicted.assign_coords(cell=[4, 5, 6])
    low, high = scores.correlation_interval(predicted, observed, draws=50, block=10, seed=3)
    random, drawn = np.random.default_rng(3), []
    for _ in range(50):
        starts = random.integers(0, 280 - 10 + 1, 28)
        frames = 20 + (starts[:, None] + np.arange(10)).ravel()
        drawn.append(scores.correlation(predicted.isel(frame=frames), observed.isel(frame=frames)))
    expected = np.percentile(np.array(drawn)[:, :2], [2.5, 97.5], axis=0)
    np.testing.assert_allclose([low[:2], high[:2]], expected, atol=1e-10)
    assert np.isnan([low[2], high[2]]).all()


def test_the_ceiling_leaves_out_frames_where_a_repeat_is_missing():
    random = np.random.default_rng(0)
    rate = random.gamma(1.0, 2.0, 200)
    response = xr.DataArray(random.poisson(rate, (8, 200)) * 1.0, dims=("repeat", "frame"))
    lost = response.copy()
    lost[3, 150:] = np.nan
    expected = scores.correlation_ceiling(response.isel(frame=slice(150)))
    assert float(scores.correlation_ceiling(lost)) == pytest.approx(float(expected))


def test_a_cell_that_was_lost_before_the_last_repeats_has_its_own_ceiling():
    random = np.random.default_rng(0)
    rate = random.gamma(1.0, 1.0, (300, 2))
    counts = random.poisson(rate, (10, 300, 2)).astype(float)
    response = xr.DataArray(counts, dims=("repeat", "frame", "cell"))
    lost = response.where((response["cell"] != LOST) | (response["repeat"] < 6))
    whole, fewer = (scores.correlation_ceiling(one) for one in (response, response[:6]))
    found = scores.correlation_ceiling(lost)
    assert float(found[0]) == pytest.approx(float(whole[0]))
    assert float(found[LOST]) == pytest.approx(float(fewer[LOST]))
    assert np.isnan(scores.correlation_ceiling(lost[5:])[LOST])  # a single repeat
