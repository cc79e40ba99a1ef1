"""Indices of a model's filters and of the true subunits, and numbers of parameters."""

import numpy as np
import pytest
import torch
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.spikes import morans_i, temporal_regularity
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.filter_indices import FilterIndices
from retinakit_plugins.analyses.parameter_count import ParameterCount
from retinakit_plugins.analyses.subunits import Subunits
from retinakit_plugins.models.crnn import CRNN

TEMPORAL = np.array([[0, 1, 0, 0], [0.2, -0.5, -1.0, 0.6]])


@pytest.fixture
def filters():
    """The spatial parts of two filters, with the mean 0."""
    spatial = np.random.default_rng(0).standard_normal((2, 5, 5)).cumsum(1)
    return spatial - spatial.mean((1, 2), keepdims=True)


def test_the_indices_are_those_of_the_filters_without_their_offset(filters, network, recording_of):
    kernels = TEMPORAL[:, :, None, None] * filters[:, None]
    model = network(kernels + 2.0)
    result = FilterIndices().run(model, recording_of(model))
    spatial = xr.DataArray(filters, dims=("filter", "y", "x"))
    np.testing.assert_allclose(result["morans_i"], morans_i(spatial), atol=1e-4)
    expected = temporal_regularity(xr.DataArray(TEMPORAL, dims=("filter", "lag")))
    np.testing.assert_allclose(result["temporal_regularity"], expected, atol=1e-4)


def test_the_true_subunits_have_as_many_lags_as_the_model(filters, network):
    kernels = TEMPORAL[:, :, None, None] * filters[:, None]
    data = small_recording(lags=6, frames=200)
    result = FilterIndices().run(network(kernels), data)
    truth = data["truth"].to_dataset()
    expected = temporal_regularity(truth["temporal"].isel(lag=slice(4)))
    np.testing.assert_allclose(result["true_temporal_regularity"], expected)
    expected = morans_i(truth["subunit_weight"])
    np.testing.assert_allclose(result["true_morans_i"], expected)
    analysis = FilterIndices()
    tree = xr.DataTree.from_dict({"/cnn": combine([((), result)])})
    (row,) = analysis.table(tree).to_dict("records")
    assert row["filters"] == 2
    assert row["mean true Moran's I"] == pytest.approx(float(expected.mean()))
    assert analysis.plot(tree)


def test_subunits_are_found_in_filters_with_an_offset(filters, network, recording_of):
    temporal = np.array([1.0, 2.0, -2.0, -1.0])
    model = network(temporal[:, None, None] * filters[:, None] + 9.0)
    data = recording_of(model)
    cosines = []
    for subtract in (False, True):
        result = Subunits({"subtract_mean": subtract}).run(model, data)
        image = result["filter_image"].isel(cell=0, filter=0).values
        placed = image[np.ix_(image.any(1), image.any(0))]
        cosines.append(abs((placed * filters[0]).sum()) / np.linalg.norm(filters[0]))
    assert cosines[0] < 0.2 and cosines[1] == pytest.approx(1, abs=1e-3)


def test_filters_of_one_lag_are_refused(filters, network, recording_of):
    model = network(filters[:, None])
    with pytest.raises(UserError, match="filters of one lag have no temporal regularity"):
        FilterIndices().run(model, recording_of(model))


@pytest.mark.parametrize(("units", "millions"), [(0, 247.06), (32, 5.50), (256, 26.03)])
def test_the_numbers_of_parameters_are_those_of_table_s1(units, millions):
    options = {"filters": [128, 64], "kernels": [25, 11], "units": units or 1}
    model = CRNN(options | {"recurrence": "lstm" if units else "none"})
    sizes = {"cell": 1218, "y": 90, "x": 90, "lag": 20}
    model.field = xr.Dataset(coords={dim: range(n) for dim, n in sizes.items()})
    with torch.device("meta"):
        model.module = model.build(model.field)
    result = ParameterCount().run(model)
    assert round(int(result["all"]) / 1e6, 2) == millions
    assert int(result["parameters"].sel(part="kernel")) == 128 * 20 * 25 * 25
    assert int(result["learned"]) == int(result["parameters"].sum()) < int(result["all"])


def test_models_of_different_parts_are_in_one_table():
    data = small_recording(frames=200)
    model = SmallModel()
    model.fit(data)
    result = ParameterCount().run(model)
    assert int(result["all"]) == sum(v.size for v in model.parameters().data_vars.values())
    other = result.assign_coords(part=[f"another {part}" for part in result["part"].values])
    groups = {"/one": combine([((), result)]), "/other": combine([((), other)])}
    table = ParameterCount().table(xr.DataTree.from_dict(groups))
    assert table["all"].tolist() == [int(result["all"])] * 2
    assert ParameterCount().plot(xr.DataTree.from_dict(groups))


def test_a_model_that_is_not_fitted_has_no_parameters():
    with pytest.raises(UserError, match="not fitted"):
        ParameterCount().run(SmallModel())
