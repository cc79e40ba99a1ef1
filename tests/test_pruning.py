"""Pruning: what is left of a prediction when filters are left out."""

import numpy as np
import pytest
import torch
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.combine import combine
from retinakit.spikes import morans_i_z
from retinakit.testing import small_recording
from retinakit_plugins.analyses.pruning import Pruning, _numbers_kept
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.ln import LN


def blobs_and_noise(blobs=4, noise=4, side=7):
    """Filters of 2 x 2 checks at different places, and of independent normal values."""
    kernels = np.zeros((blobs + noise, 1, side, side))
    for index in range(blobs):
        y, x = 1 + 3 * (index // 2), 1 + 3 * (index % 2)
        kernels[index, 0, y : y + 2, x : x + 2] = 1.0
    random = np.random.default_rng(1)
    kernels[blobs:] = random.standard_normal((noise, 1, side, side)) / 3
    return kernels


@pytest.fixture
def redundant(network):
    """A network whose noisy filters are not connected to the output, as one that was trained."""
    output = np.ones((8, 2, 2)) * np.r_[np.ones(4), np.zeros(4)][:, None, None]
    order = np.random.default_rng(0).permutation(8)
    return network(blobs_and_noise()[order], output=0.3 * output[order], output_bias=-3.0), order


def test_without_the_unstructured_filters_nothing_is_lost_and_with_random_ones_much_is(
    redundant, recording_of
):
    model, order = redundant
    result = Pruning({}).run(model, recording_of(model, repeats=3))
    assert int(result["chosen"]) == 4
    assert set(order[result["rank"].values < 4]) == {0, 1, 2, 3}
    against_rate = result.isel(cell=0).sel(against="rate")
    assert float(against_rate["correlation"].sel(kept=4)) == pytest.approx(1, abs=1e-6)
    assert float(against_rate["correlation_random"].sel(kept=4).mean()) < 0.8
    assert result["correlation_random"].sizes["draw"] == 10


def test_all_filters_are_the_full_model_and_none_explain_nothing(redundant, recording_of):
    model, _ = redundant
    data = recording_of(model, repeats=3)
    test = data["test"].to_dataset()
    result = Pruning({"draws": 3}).run(model, data).isel(cell=0)
    rate, response = test["rate"].values[:, 0], test["response"].values.mean(0)[:, 0]
    expected = {"rate": 1.0, "response": np.corrcoef(rate, response)[0, 1]}
    for against, value in expected.items():
        at = result.sel(against=against)
        np.testing.assert_allclose(at["correlation"].sel(kept=[0, 8]), [0, value], atol=1e-6)
        np.testing.assert_allclose(at["correlation_random"].sel(kept=8), value, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_silent_filter_contributes_nothing(network, layers):
    kernels = blobs_and_noise(2, 1)
    torch.manual_seed(0)
    model = network(kernels, bias=0.5, layers=layers)
    stimulus = xr.DataArray(
        np.random.default_rng(0).standard_normal((50, 8, 8)), dims=("frame", "y", "x")
    )
    before = model.predict(stimulus)
    pruned = model.without("layer1", [1])
    # The same with a network of only the kept filters.
    small = network(kernels[[0, 2]], bias=0.5, layers=layers)
    with torch.no_grad():
        kept, bare = model.module, small.module
        bare.dense[:] = kept.dense[:, [0, 2]]
        if layers == 2:  # its second layer still has three maps to the output
            hidden = torch.nn.functional.conv2d(
                torch.tensor(stimulus.values, dtype=torch.float32)[:, None],
                kept.kernel[0][[0, 2]],
                kept.bias[[0, 2]],
            ).relu()
            deeper = torch.nn.functional.conv2d(
                hidden, kept.deeper[0][:, [0, 2]], kept.deeper_bias[0], padding="same"
            ).relu()
            drive = deeper.flatten(1) @ kept.dense.flatten(1).T + kept.dense_bias
            expected = torch.nn.functional.softplus(drive).numpy()
        else:
            expected = small.predict(stimulus).values
    np.testing.assert_allclose(pruned.predict(stimulus), expected, atol=1e-5)
    assert not np.allclose(pruned.predict(stimulus), before)
    xr.testing.assert_identical(model.predict(stimulus), before)


def test_filters_that_are_sums_of_products_are_left_out_alike(redundant, recording_of):
    model = CNN({"lags": 3, "filters": 3, "rank": 2, "steps": 2, "check_every": 1})
    model.fit(recording_of(redundant[0]))
    before, after = (m.parameters()["kernel"] for m in (model, model.without("layer1", [0, 2])))
    xr.testing.assert_equal(after.sel(filter=1), before.sel(filter=1))
    assert (after.sel(filter=[0, 2]) == 0).all() and (before != 0).all()


def test_as_many_filters_are_kept_as_one_asks_for_or_all_of_them(redundant, recording_of):
    model, _ = redundant
    data = recording_of(model)
    assert int(Pruning({"keep": 2, "draws": 1}).run(model, data)["chosen"]) == 2
    assert int(Pruning({"keep": 20, "draws": 1}).run(model, data)["chosen"]) == 8


def test_a_stricter_level_keeps_fewer(redundant, recording_of):
    model, _ = redundant
    data = recording_of(model)
    loose, strict = (
        int(Pruning({"significance": p, "draws": 1}).run(model, data)["chosen"])
        for p in (0.4, 1e-9)
    )
    assert strict < 4 < loose


def test_the_table_of_a_population_has_a_row_for_each_cell_and_size(network, recording_of):
    points = []
    for cell, noise in ((3, 4), (7, 1)):
        model = network(blobs_and_noise(4, noise), output_bias=-2.0)
        result = Pruning({"draws": 4}).run(model, recording_of(model, seed=cell))
        points.append(((("cell", cell),), result.assign_coords(cell=[cell])))
    tree = xr.DataTree.from_dict({"/cnn": combine(points)})
    table = Pruning({"draws": 4}).table(tree).set_index("cell")
    assert table["filters in all"].tolist() == [8, 5]
    np.testing.assert_allclose(table["correlation, all filters"], 1, atol=1e-6)
    for cell, (_, result) in zip((3, 7), points, strict=True):
        chosen = int(result["chosen"])
        rate = result.isel(cell=0).sel(against="rate", kept=chosen)
        assert table["filters kept"][cell] == chosen
        assert table["correlation, filters kept"][cell] == pytest.approx(float(rate["correlation"]))
        draws = rate["correlation_random"]
        assert table["correlation, random filters"][cell] == pytest.approx(float(draws.mean()))
        assert table["sd, random filters"][cell] == pytest.approx(float(draws.std()))


def test_the_population_is_drawn_against_the_full_models(redundant, recording_of):
    model, _ = redundant
    result = Pruning({}).run(model, recording_of(model))
    tree = xr.DataTree.from_dict({"/cnn": combine([((), result)])})
    effective, random, curves = Pruning({}).plot(tree).axes[:3]
    at = result.isel(cell=0).sel(against="rate", kept=4)
    (dot,) = (line for line in effective.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dot.get_xydata(), [[1, at["correlation"]]], atol=1e-6)
    (cross,) = (line for line in random.lines if line.get_marker() == "o")
    np.testing.assert_allclose(cross.get_ydata(), [at["correlation_random"].mean()])
    assert curves.get_xlabel() == "number of filters kept"


def test_a_model_whose_filters_cannot_be_left_out_is_refused(recording_of, redundant):
    data = recording_of(redundant[0])
    model = LN({"lags": 2})
    model.fit(data)
    with pytest.raises(UserError, match="a LN cannot be pruned, because it has no layers"):
        Pruning({}).run(model, data)


def test_morans_i_in_standard_deviations_is_that_of_independent_values():
    random = np.random.default_rng(0)
    for shape in ((7, 7), (3, 9), (2, 2), (1, 9)):
        z = morans_i_z(xr.DataArray(random.standard_normal((8000, *shape)), dims=("n", "y", "x")))
        assert float(z.mean()) == pytest.approx(0, abs=0.04)
        assert float(z.std()) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2)])
def test_moran_s_i_of_few_checks_has_no_significance(shape):
    assert np.isnan(morans_i_z(xr.DataArray(np.ones(shape), dims=("y", "x"))))


def test_an_unfitted_network_cannot_be_pruned():
    with pytest.raises(UserError, match="the CNN is not fitted"):
        CNN({}).without("layer1", [0])


@pytest.fixture
def in_time(network):
    """Filters of three lags: the first half act at one lag, and the others at all lags."""
    kernels = np.repeat(blobs_and_noise(), 3, axis=1)
    kernels[::2] *= np.array([0, 1, 0])[:, None, None]
    return network(kernels, output=0.3 * np.ones((8, 2, 2)), output_bias=-3.0)


def test_by_the_temporal_index_filters_with_a_peak_in_time_are_kept_first(in_time, recording_of):
    result = Pruning({"index": "temporal", "draws": 1}).run(in_time, recording_of(in_time))
    assert set(np.flatnonzero(result["rank"] < 4)) == {0, 2, 4, 6}
    ranked = result["temporal_regularity"].sortby(result["rank"])
    assert (ranked.diff("filter") <= 0).all()
    assert int(result["chosen"]) == int((result["z"] > 2.33).sum())


def test_only_the_numbers_asked_for_are_computed(in_time, recording_of):
    options = {"counts": [128, 4, 2], "draws": 1, "keep": 3}
    result = Pruning(options).run(in_time, recording_of(in_time))
    assert result["kept"].values.tolist() == [2, 3, 4, 8]
    with pytest.raises(ValueError, match=r"a number of filters kept is negative \(-1\)"):
        Pruning({"counts": [-1, 2]})


def test_of_large_networks_powers_of_two_are_computed():
    assert _numbers_kept(None, 32, 5) == list(range(33))
    assert _numbers_kept(None, 128, 5) == [0, 1, 2, 4, 5, 8, 16, 32, 64, 128]


def test_a_filter_of_one_lag_has_no_temporal_index(redundant, recording_of):
    with pytest.raises(UserError, match="filters of one lag have no temporal regularity"):
        Pruning({"index": "temporal"}).run(redundant[0], recording_of(redundant[0]))


def test_a_population_has_the_mean_and_the_population_correlation():
    data = small_recording(frames=400)
    model = CNN({"lags": 5, "filters": 2, "kernel": 5, "steps": 2, "check_every": 1})
    model.fit(data)
    analysis = Pruning({"draws": 2})
    result = analysis.run(model, data)
    test = data["test"].to_dataset()
    predicted = model.predict(test).values[4:]
    for against, observed in (
        ("rate", test["rate"].values[4:]),
        ("response", test["response"].values.mean(0)[4:]),
    ):
        of_all = result.sel(kept=2, against=against)
        each = [np.corrcoef(*traces)[0, 1] for traces in zip(predicted.T, observed.T, strict=True)]
        mean = np.corrcoef(predicted.mean(1), observed.mean(1))[0, 1]
        assert float(of_all["correlation"].mean()) == pytest.approx(np.mean(each), abs=1e-5)
        assert float(of_all["correlation_of_mean"]) == pytest.approx(mean, abs=1e-5)
    table = analysis.table(xr.DataTree.from_dict({"/cnn": combine([((), result)])}))
    assert table["filters kept"].tolist() == [0, 1, 2]
    assert table["mean correlation"][2] == pytest.approx(float(result["correlation"][1, 2].mean()))
    assert table["correlation of mean"][0] == 0
