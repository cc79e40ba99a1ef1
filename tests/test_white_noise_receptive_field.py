"""Receptive fields of a model's cells from white noise, beside those of the data."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.spikes import ELLIPSE, field_distance, white_noise_field
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.white_noise_receptive_field import WhiteNoiseReceptiveField


def outline(y=0.0, x=0.0, major=1.0, minor=1.0, angle=0.0):
    return xr.Dataset(dict(zip(ELLIPSE, (1.0, y, x, major, minor, angle), strict=True)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (outline(major=3, minor=3), outline(x=6, major=3, minor=3), 0.632121),
        (outline(), outline(major=2, minor=2), 0.2),
        (outline(major=2), outline(major=2, angle=np.pi / 2), 0.2),
    ],
    ids=["shifted by 2 sd", "of twice the width", "turned by a quarter"],
)
def test_the_distance_of_gaussians_is_one_minus_their_cosine(first, second, expected):
    assert float(field_distance(first, second)) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def recording():
    return small_recording(size=16, cells=3, frames=3000)


@pytest.fixture(scope="module")
def model(recording):
    fitted = SmallModel()
    fitted.fit(recording)
    return fitted


def test_it_is_the_noise_weighted_by_the_rate(model, monkeypatch):
    monkeypatch.setattr("retinakit.spikes.white_noise.CELLS_AT_ONCE", 2)
    monkeypatch.setattr("retinakit.spikes.white_noise.BLOCK_VALUES", 16 * 16 * 300)
    found = white_noise_field(model, 1000, contrast=0.5, false_positive=1, seed=3)
    blocks = []
    for index, frames in enumerate((300, 300, 300, 100)):
        random = np.random.default_rng([3, index])
        blocks.append(random.integers(0, 2, (frames + 4, 16, 16), np.int8) - 0.5)
    rate = np.concatenate([model.predict(block).values[4:] for block in blocks])
    rate = rate - rate.mean(0) * np.ones_like(rate)
    total = sum(model.predict(block).values[4:].sum(0) for block in blocks)
    for cell in range(3):
        field = np.zeros((5, 16, 16))
        weights = np.split(rate[:, cell], [300, 600, 900])
        for block, weight in zip(blocks, weights, strict=True):
            for lag in range(5):
                shown = block[4 - lag : 4 - lag + len(weight)]
                field[lag] += np.tensordot(weight, shown, 1) / total[cell]
        temporal = found["temporal"].values[cell]
        expected = np.tensordot(temporal, field, 1)
        np.testing.assert_allclose(found["spatial"][cell], expected, atol=1e-5)


def test_the_fields_of_a_good_model_are_those_of_the_data(model, recording):
    result = WhiteNoiseReceptiveField({"clips": 4000}).run(model, recording)
    assert (result["found"] == 1).all() and (result["distance"] < 0.15).all()
    # The field of 4 x 4 checks of each cell is around the centre of its Gaussian.
    weight = recording["truth"]["subunit_weight"].sum("subunit")
    for dim in ("y", "x"):
        centre = (weight * weight[dim]).sum(("y", "x")) / weight.sum(("y", "x"))
        np.testing.assert_allclose(result[f"centre_{dim}"], centre, atol=15)
        np.testing.assert_allclose(result[f"data_centre_{dim}"], centre, atol=15)


def test_by_the_spike_triggered_average_they_are_the_same(model, recording):
    by = [
        WhiteNoiseReceptiveField({"clips": 4000, "compare": one}).run(model, recording)
        for one in ("truth", "sta")
    ]
    for dim in ("y", "x"):
        first, second = (one[f"data_centre_{dim}"] for one in by)
        np.testing.assert_allclose(first, second, atol=20)
    alone = WhiteNoiseReceptiveField({"clips": 500, "compare": "none"}).run(model, recording)
    assert "distance" not in alone


class Half(SmallModel):
    """A model whose second cell does not depend on the stimulus."""

    def respond(self, split):
        rate = np.array(super().respond(split))
        rate[:, 1] = 0.3
        return rate


def test_a_cell_without_a_receptive_field_is_left_out_and_counted(recording):
    model = Half()
    model.fit(recording)
    analysis = WhiteNoiseReceptiveField({"clips": 4000})
    result = analysis.run(model, recording)
    assert result["found"].values.tolist() == [1, 0, 1]
    for name in ("distance", "morans_i", "temporal_regularity"):
        assert np.isnan(result[name]).values.tolist() == [False, True, False]
    tree = xr.DataTree.from_dict({"/half": combine([((), result)])})
    (row,) = analysis.table(tree).to_dict("records")
    assert (row["with a receptive field"], row["with an outline"], row["compared"]) == (2, 2, 2)
    assert row["mean distance"] == pytest.approx(float(result["distance"].mean()))
    assert analysis.plot(tree)


def test_cells_are_compared_by_name(model, recording):
    fewer = recording.copy(deep=True)
    for name in ("train", "validation", "test", "truth"):
        fewer[name] = xr.DataTree(fewer[name].to_dataset().isel(cell=[2, 0]))
    whole = WhiteNoiseReceptiveField({"clips": 1000}).run(model, recording)["distance"].values
    found = WhiteNoiseReceptiveField({"clips": 1000}).run(model, fewer)["distance"].values
    np.testing.assert_allclose(found, [whole[0], np.nan, whole[2]])


def test_another_field_and_a_missing_truth_are_refused(model, recording):
    other = small_recording(size=14, cells=3, frames=200)
    with pytest.raises(UserError, match="the field of the data differs from that of the model"):
        WhiteNoiseReceptiveField({"clips": 100}).run(model, other)
    untrue = recording.copy()
    del untrue["truth"]
    with pytest.raises(UserError, match="no true receptive fields"):
        WhiteNoiseReceptiveField({"clips": 100, "compare": "truth"}).run(model, untrue)
