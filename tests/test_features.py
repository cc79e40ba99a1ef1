"""Features: what the maps of a network respond to."""

import numpy as np
import pytest
import torch
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.spikes import temporal_autocorrelation, temporal_regularity
from retinakit_plugins.analyses.features import KINDS, Features
from retinakit_plugins.models.ln import LN

# For a Gaussian stimulus, E[relu(w s) s] / E[relu(w s)] = √(π / 2) w / |w|.
LENGTH = np.sqrt(np.pi / 2)


def blob(y=2, x=2, side=7, sign=1.0):
    """A square of 3 x 3 checks, of unit norm."""
    kernel = np.zeros((1, side, side))
    kernel[0, y : y + 3, x : x + 3] = sign / 3
    return kernel


@pytest.fixture
def shown(network, recording_of):
    """Runs the analysis on a network of given filters, with a recording as large."""

    def run(kernels, options=None, data=None, seed=0, **parameters):
        model = network(np.array(kernels), **parameters)
        data = recording_of(model, frames=100) if data is None else data
        return Features(options or {}, seed=seed).run(model, data)

    return run


def kinds(result):
    return [list(KINDS)[code] for code in result["kind"].values]


def placed(kernel, y, x, field=(8, 8)):
    """A filter at a position of its map, in the field."""
    image = np.zeros(field)
    image[y : y + kernel.shape[-2], x : x + kernel.shape[-1]] = kernel[0]
    return image


def test_the_feature_of_a_filter_is_the_filter(shown):
    kernels = [blob(), np.random.default_rng(0).standard_normal((1, 7, 7))]
    result = shown(kernels)
    for kernel, feature in zip(kernels, result["feature"].values, strict=True):
        expected = LENGTH * placed(kernel / np.linalg.norm(kernel), 0, 0)
        np.testing.assert_allclose(feature, expected, atol=0.08)
        assert (feature * expected).sum() / np.linalg.norm(feature) / LENGTH > 0.98


def test_over_all_positions_a_feature_is_blurred_by_the_map(shown):
    result = shown([blob()], {"position": "mean"})
    places = [placed(blob(), y, x) for y in (0, 1) for x in (0, 1)]
    np.testing.assert_allclose(result["feature"][0], LENGTH * np.mean(places, 0), atol=0.06)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_by_output_weight_a_feature_is_where_it_acts_whatever_the_sign(shown, sign):
    output = np.zeros((1, 2, 2))
    output[0, 1, 0], output[0, 0, 0] = 3 * sign, -sign
    result = shown([blob()], {"position": "dense-weighted"}, output=output)
    expected = LENGTH * (0.75 * placed(blob(), 1, 0) + 0.25 * placed(blob(), 0, 0))
    np.testing.assert_allclose(result["feature"][0], expected, atol=0.06)


def test_a_seed_repeats_the_noise_and_more_samples_come_nearer(shown):
    few, again, other = (shown([blob()], {"samples": 500}, seed=seed) for seed in (0, 0, 1))
    xr.testing.assert_identical(few, again)
    assert not few["feature"].equals(other["feature"])
    many = shown([blob()], {"samples": 20_000})
    expected = LENGTH * placed(blob(), 0, 0)
    error = [np.abs(one["feature"].values[0] - expected).mean() for one in (few, many)]
    assert error[1] < error[0] / 4  # √40 times smaller


def test_noise_has_no_structure_and_blobs_are_on_off_or_mixed(shown):
    noise = np.random.default_rng(0).standard_normal((60, 1, 7, 7))
    both = blob(0, 1) + blob(4, 2, sign=-1)
    weak = blob(0, 1) + 0.3 * blob(4, 2, sign=-1)
    result = shown([blob(), blob(sign=-1), both, weak, *noise])
    assert kinds(result)[:4] == ["ON", "OFF", "mixed", "ON"]
    assert kinds(result)[4:].count("noise") >= 57  # of 60, at a level of 0.01
    np.testing.assert_allclose(result["peak_ratio"][2:4], [1, 0.3], atol=0.12)
    assert abs(float(result["z"][4:].mean())) < 0.5
    stricter = shown([blob(), blob(sign=-1), both, weak], {"mixed": 0.2})
    assert kinds(stricter) == ["ON", "OFF", "mixed", "mixed"]


def test_on_and_off_are_of_light_where_the_stimulus_was_collapsed(shown, network, recording_of):
    data = recording_of(network(np.array([blob()])), frames=100)
    for peak, kind in ((-1.0, "OFF"), (1.0, "ON")):
        course = xr.Dataset({"temporal": ("lag", [0.0, 0.2, peak, -0.4 * peak])})
        collapsed = xr.DataTree.from_dict({**data.to_dict(), "/collapse": course})
        result = shown([blob(), blob(sign=-1)], data=collapsed)
        assert kinds(result) == [kind, {"OFF": "ON", "ON": "OFF"}[kind]]
        assert np.sign(result["filter_image"].values[0].sum()) == peak


def test_a_feature_in_space_and_time_is_taken_apart(shown):
    course = np.array([0.1, -0.6, -0.9, 0.5, 0.3])
    result = shown([course[:, None, None] * blob()[0]], {"samples": 20_000})
    assert kinds(result) == ["OFF"]
    temporal = result["feature_temporal"]
    xr.testing.assert_equal(result["temporal_regularity"], temporal_regularity(temporal))
    xr.testing.assert_equal(result["temporal_autocorrelation"], temporal_autocorrelation(temporal))
    space, time = result["feature"].values[0], result["feature_temporal"].values[0]
    assert -(space * placed(blob(), 0, 0)).sum() / np.linalg.norm(space) > 0.98
    # Positive at its peak, so that the sign is in the image.
    assert -(time @ course) / np.linalg.norm(course) > 0.98
    filtered = result["filter_temporal"].values[0]
    np.testing.assert_allclose(filtered, -course / np.linalg.norm(course), atol=1e-6)


def test_a_deeper_feature_is_the_sum_of_what_its_filter_combines(network, recording_of):
    kernels = np.array([blob(1, 1), blob(3, 3)])
    model = network(kernels, layers=2, deeper_kernel=1)
    with torch.no_grad():
        model.module.deeper[0][:, :, 0, 0] = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    data = recording_of(model, frames=100)
    result = Features({"layer": "layer2", "samples": 20_000}).run(model, data)
    first, second = (placed(kernel, 0, 0) for kernel in kernels)
    np.testing.assert_allclose(result["feature"][0] / LENGTH, (first + second) / 2, atol=0.05)
    np.testing.assert_allclose(result["feature"][1] / LENGTH, second, atol=0.05)
    assert "filter_image" not in result


def test_a_filter_that_never_responds_has_no_feature(shown):
    result = shown([blob(), blob()], bias=[0.0, -100.0])
    assert kinds(result) == ["ON", "noise"]
    assert result["feature"][1].isnull().all() and float(result["activation"][1]) == 0


def test_the_table_counts_the_filters_of_each_kind(shown):
    few, many = shown([blob()]), shown([blob(), blob(sign=-1), blob(1, 3)])
    points = [((("filters", 1),), few), ((("filters", 3),), many)]
    table = Features({}).table(xr.DataTree.from_dict({"/cnn": combine(points)}))
    assert table[["filters", *KINDS]].values.tolist() == [[1, 0, 1, 0, 0], [3, 0, 2, 1, 0]]


def test_features_of_maps_that_are_not_there_are_refused(shown, network, recording_of):
    with pytest.raises(UserError, match="the CNN has no layer 'layer2'; did you mean 'layer1'"):
        shown([blob()], {"layer": "layer2"})
    with pytest.raises(UserError, match=r"needs the output_weight of the last layer, 'layer2'"):
        shown([blob()], {"position": "dense-weighted"}, layers=2)
    data = recording_of(network(np.array([blob()])))
    linear = LN({"lags": 1})
    linear.fit(data)
    with pytest.raises(UserError, match=r"^a LN has no layers, so it has no feature maps"):
        Features({}).run(linear, data)
