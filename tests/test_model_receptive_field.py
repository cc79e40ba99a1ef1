"""The receptive field of a model neuron."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.spikes import sta
from retinakit_plugins.analyses.model_receptive_field import ModelReceptiveField

COURSE = np.array([0.2, -0.5, -1.0, 0.6])


def unit(values):
    return values / np.linalg.norm(values)


@pytest.fixture
def one_lag(network):
    kernel = np.zeros((1, 1, 7, 7))
    kernel[0, 0, 2:5, 2:5] = -0.5
    return network(kernel, output=np.array([[[1.0, 0.0], [0.0, 0.0]]]), output_bias=-1.0)


@pytest.fixture
def in_time(network):
    kernel = np.zeros((1, len(COURSE), 7, 7))
    kernel[0, :, 2:5, 2:5] = 0.3 * COURSE[:, None, None]
    return network(kernel, output=np.array([[[1.0, 0.0], [0.0, 0.0]]]), output_bias=-1.0)


def test_it_is_the_average_stimulus_weighted_by_the_predicted_rate(in_time, recording_of):
    data = recording_of(in_time, frames=3000)
    train = data["train"].to_dataset()
    result = ModelReceptiveField({"trials": 200}).run(in_time, data)
    rate = in_time.predict(train).values[3:, 0].astype(float)
    stimulus = train["stimulus"].values.astype(float)
    for lag in range(4):
        shown = stimulus[3 - lag : len(stimulus) - lag]
        expected = np.tensordot(rate, shown, 1) / rate.sum()
        found = result["sta"].sel(source="model", lag=lag, cell=0)
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert float(result["spikes"].sel(source="model", cell=0)) == pytest.approx(
        rate.sum(), rel=0.02
    )


def test_beside_it_is_the_average_of_the_cells_spikes(in_time, recording_of):
    data = recording_of(in_time)
    result = ModelReceptiveField({}).run(in_time, data)
    of_the_cell = sta(data["train"].to_dataset(), 4)
    xr.testing.assert_equal(
        result["sta"].sel(source="data", drop=True).transpose(*of_the_cell["sta"].dims),
        of_the_cell["sta"],
    )


def test_the_space_and_time_of_the_right_model_are_the_cells(in_time, recording_of):
    result = ModelReceptiveField({}).run(in_time, recording_of(in_time, frames=20_000))
    for source in ("data", "model"):
        course = result["temporal"].sel(source=source, cell=0).values
        assert course @ unit(COURSE) > 0.95
        space = result["spatial"].sel(source=source, cell=0).values
        assert unit(space)[2:5, 2:5].sum() / 3 > 0.95
    for name in ("cosine", "cosine_spatial", "cosine_temporal"):
        first, second = (
            result[{"cosine": "sta"}.get(name, name[7:])].isel(source=i, cell=0).values.ravel()
            for i in (0, 1)
        )
        assert float(result[name].item()) == pytest.approx(unit(first) @ unit(second))
    assert float(result["cosine_spatial"].item()) > 0.95


def test_a_single_lag_keeps_the_sign_of_its_map_and_has_no_course(one_lag, recording_of):
    result = ModelReceptiveField({}).run(one_lag, recording_of(one_lag, frames=5000))
    assert "temporal" not in result
    assert (result["spatial"].isel(cell=0).values[:, 2:5, 2:5] < 0).all()
    xr.testing.assert_allclose(result["spatial"], result["sta"].isel(lag=0, drop=True))


def test_a_model_of_another_place_has_another_receptive_field(one_lag, network, recording_of):
    kernel = np.zeros((1, 1, 7, 7))
    kernel[0, 0, :2, 5:] = 1.0
    other = network(kernel, output=np.array([[[0.0, 1.0], [0.0, 0.0]]]))
    result = ModelReceptiveField({}).run(other, recording_of(one_lag, frames=5000))
    assert abs(float(result["cosine"].item())) < 0.2


def test_lags_may_be_more_than_the_models(one_lag, recording_of):
    result = ModelReceptiveField({"lags": 3}).run(one_lag, recording_of(one_lag, frames=5000))
    power = (result["sta"].sel(source="model") ** 2).sum(("cell", "y", "x")).values
    assert power[0] > 5 * power[1:].max()


def test_the_table_has_a_row_for_each_cell(one_lag, recording_of):
    points = []
    for cell in (3, 8):
        found = ModelReceptiveField({}).run(one_lag, recording_of(one_lag, seed=cell))
        points.append(((("cell", cell),), found.assign_coords(cell=[cell])))
    table = ModelReceptiveField({}).table(xr.DataTree.from_dict({"/cnn": combine(points)}))
    assert table["cell"].tolist() == [3, 8]
    assert table["cosine"].tolist() == [found["cosine"].item() for _, found in points]


def test_a_stimulus_with_channels_is_refused(one_lag, recording_of):
    data = recording_of(one_lag).map_over_datasets(
        lambda split: (
            split.assign(stimulus=split["stimulus"].expand_dims("channel", 1))
            if split.sizes
            else split
        )
    )
    with pytest.raises(UserError, match="the stimulus has channels"):
        ModelReceptiveField({}).run(one_lag, data)
