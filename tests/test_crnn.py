"""The networks of Zheng et al. (2021): gates, sizes, layers."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from retinakit import UserError
from retinakit.contracts import make_recording, make_split
from retinakit.layers import BatchNorm, Recurrent
from retinakit.registry import Registry, load_entry
from retinakit.testing import check_model, small_recording
from retinakit_plugins.analyses.features import Features
from retinakit_plugins.analyses.lesion import Lesion
from retinakit_plugins.analyses.optimal_stimulus import OptimalStimulus
from retinakit_plugins.analyses.pruning import Pruning
from retinakit_plugins.analyses.subunits import Subunits
from retinakit_plugins.models.crnn import CRNN

TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
SMALL = CRNN.quick | {"steps": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"recurrence": "none", "start": "glorot"},
    "lstm in time": {"axis": "time", "start": "glorot"},
}


def filled(kind: str, w: float, u: float, update: float = 1.0) -> Recurrent:
    """A layer of one unit with Keras' gates and equal weights, but for the sign of one gate."""
    layer = Recurrent(kind, 1, 1, gates="keras")
    with torch.no_grad():
        layer.layer.weight_ih_l0.fill_(w)
        layer.layer.weight_hh_l0.fill_(u)
        if kind == "gru":
            layer.layer.weight_ih_l0[1] *= update
            layer.layer.weight_hh_l0[1] *= update
    return layer


@pytest.mark.parametrize(
    ("kind", "u", "update", "expected"),
    [
        ("lstm", 0.0, 1, [0.341432, 0.536877]),
        # Eq 5 of the paper exchanges z and 1 - z, which is the other sign of their weights.
        ("gru", 1.0, -1, [0.533116, 0.822335]),
        ("rnn", 0.5, 1, [0.761594, 0.881130]),
    ],
)
def test_the_gates_are_those_of_keras(kind, u, update, expected):
    layer = filled(kind, 1.0, u, update)
    out, _ = layer(torch.ones(1, 2, 1))
    np.testing.assert_allclose(out.flatten().tolist(), expected, atol=6e-7)
    _, state = layer(torch.ones(1, 1, 1))
    rest, _ = layer(torch.ones(1, 1, 1), state)
    np.testing.assert_allclose(rest.flatten().tolist(), expected[1:], atol=6e-7)


@pytest.mark.parametrize("kind", TORCH)
def test_the_gates_are_those_of_torch(kind):
    layer, other = Recurrent(kind, 3, 4), TORCH[kind](3, 4, batch_first=True)
    other.load_state_dict(layer.layer.state_dict())
    sequence = torch.randn(5, 6, 3)
    assert torch.equal(layer(sequence)[0], other(sequence)[0])
    weights = layer.weights()
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    assert weights["W"].shape == (gates, 4, 3) and weights["U"].shape == (gates, 4, 4)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_loop_of_keras_differs_from_torch_in_its_gates_only(kind, monkeypatch):
    monkeypatch.setattr("retinakit.layers.recurrent._hard_sigmoid", torch.sigmoid)
    layer = Recurrent(kind, 3, 4, gates="keras")
    if kind == "gru":  # the reset is applied before or after the product
        layer.layer.weight_hh_l0.data[8:] = torch.diag(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    sequence, state = torch.randn(5, 6, 3), torch.randn(1, 5, 4)
    given = (state, state) if kind == "lstm" else state
    expected, last = layer.layer(sequence, given)
    found, after = layer(sequence, given)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after, last, atol=1e-6, rtol=1e-5)


def test_running_statistics_are_averages_over_all_batches_so_far():
    batches = [torch.randn(40, 3, 5) * scale + 4 for scale in (1, 2, 6)]
    norm = BatchNorm(3)
    for batch in batches:
        norm(batch)
    means = torch.stack([batch.mean((0, 2)) for batch in batches])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    keras = BatchNorm(3, start="unit")
    keras(batches[0])
    torch.testing.assert_close(keras.running_mean, 0.01 * means[0])
    norm(torch.full((1, 3), 100.0))  # one value has no variance, and changes nothing
    torch.testing.assert_close(norm.running_mean, means.mean(0))


MILLIONS = {
    80: {0: 18.65, 32: 3.16, 64: 3.74, 128: 4.92, 256: 7.38},
    1218: {0: 247.06, 32: 5.50, 64: 8.41, 128: 14.25, 256: 26.03},
}
"""Parameters by the numbers of cells and of recurrent units, 0 for the CNN."""


@pytest.mark.parametrize(
    ("cells", "units", "millions"),
    [(cells, units, n) for cells, row in MILLIONS.items() for units, n in row.items()],
)
def test_numbers_of_parameters_are_those_of_table_s1(cells, units, millions):
    """With the running statistics of batch normalisation, which Keras counts."""
    recurrence = "lstm" if units else "none"
    options = {"filters": [128, 64], "kernels": [25, 11], "recurrence": recurrence}
    model = CRNN(options | {"units": units or 1})
    sizes = {"cell": cells, "y": 90, "x": 90, "lag": 20}
    with torch.device("meta"):
        module = model.build(xr.Dataset(coords={dim: range(n) for dim, n in sizes.items()}))
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    running = sum(b.numel() for name, b in module.named_buffers() if "running" in name)
    assert round((learned + running) / 1e6, 2) == millions


def test_penalties_have_the_weights_of_a_loss_that_is_a_mean_over_cells():
    weights = {"kernel_l1": 2.0, "kernel_l2": 3.0, "dense_l2": 5.0, "activity_l1": 7.0}
    model = CRNN(SMALL | weights)
    field = xr.Dataset(coords={"cell": range(4), "y": range(8), "x": range(8), "lag": range(5)})
    module: Any = model.build(field)
    prediction = module(torch.randn(24, 8, 8))
    inputs, squares = module.recurrent.layer.weight_ih_l0, lambda *of: sum((w**2).sum() for w in of)
    expected = 2 * module.kernel.abs().sum() + 5 * squares(module.dense)
    expected += 3 * squares(module.kernel, module.kernel_2, inputs) + 7 * module.absolute_input
    torch.testing.assert_close(model.penalty(module, prediction), 4 * expected)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_keeps_the_contract(options):
    check_model(CRNN(CRNN.quick | options), small_recording(frames=400))


@pytest.fixture(scope="module")
def recording() -> xr.DataTree:
    return small_recording(frames=400)


@pytest.fixture(scope="module")
def fitted(recording: xr.DataTree) -> CRNN:
    model = CRNN(SMALL)
    model.fit(recording)
    return model


def test_a_silenced_filter_feeds_nothing(fitted, recording):
    """With batch normalisation a filter of zeros would still have an output."""
    shown, fitted = recording["test"], fitted.without("layer1", [])
    with torch.no_grad():
        fitted.module.norm.bias += 3
    silenced = fitted.without("layer1", [1])
    assert float(abs(silenced.activity(shown, "layer1")[:, 1]).max()) == 0
    cut = fitted.without("layer1", [])
    with torch.no_grad():  # the same network without the connections from this filter
        cut.module.kernel_2[:, 1] = 0
    xr.testing.assert_allclose(silenced.predict(shown), cut.predict(shown))
    zeros = fitted.without("layer1", [])
    with torch.no_grad():
        zeros.module.kernel[:, 1] = 0
        zeros.module.bias[1] = 0
    assert not np.allclose(zeros.predict(shown), cut.predict(shown), equal_nan=True)


def test_the_recurrent_layer_has_the_feature_maps_as_steps(fitted, recording):
    activity = fitted.activity(recording["test"], "recurrent")
    assert activity.dims == ("frame", "unit", "step")
    assert dict(activity.sizes) == {"frame": 100, "unit": 3, "step": 2}


@pytest.mark.parametrize("recurrence", ["none", "lstm"])
def test_output_weights_are_the_derivatives_of_a_cell_by_the_maps(recurrence, recording):
    model = CRNN(SMALL | {"recurrence": recurrence})
    model.fit(recording)
    weight = model.parameters()["output_weight"]
    assert weight.sizes == {"cell": 2, "filter": 3, "map_y": 4, "map_x": 4}
    module: Any = model.module
    with torch.no_grad():  # all ReLUs of layer 2 are open, so that they have no effect
        module.norm_2.bias += 100
    maps = torch.rand(1, 3, 4, 4, requires_grad=True)
    drive = nn.functional.conv2d(maps, module.kernel_2, module.bias_2)
    cell = module.drives(module.from_maps(module.norm_2(drive)))[0, 1]
    (expected,) = torch.autograd.grad(cell, maps)
    found = model.parameters()["output_weight"][1]
    if recurrence == "none":  # linear
        np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(found, weight[1])


@pytest.mark.parametrize("axis", ["feature", "time"])
def test_a_prediction_in_parts_is_that_of_all_frames(axis, recording, monkeypatch):
    model = CRNN(SMALL | {"axis": axis})
    model.fit(recording)
    whole = model.predict(recording["test"])
    monkeypatch.setattr("retinakit_plugins.models.crnn.MAP_VALUES", 7 * 3 * 16)  # of 7 frames
    module: Any = model.module
    assert len(module.parts(torch.zeros(30 + 4, 8, 8))) == 5
    xr.testing.assert_allclose(model.predict(recording["test"]), whole)
    assert len(module.train().parts(torch.zeros(30 + 4, 8, 8))) == 1


def test_the_analyses_of_layers_run(fitted, recording):
    pruned = Pruning.with_options(draws=1).run(fitted, recording)
    assert pruned.sizes["kept"] == 4
    assert Features.with_options(samples=200).run(fitted, recording).sizes["filter"] == 3
    with pytest.raises(UserError, match="position 'dense-weighted'"):
        options = {"position": "dense-weighted", "layer": "recurrent", "samples": 200}
        Features(options).run(fitted, recording)
    assert Subunits().run(fitted, recording)["filter_image"].sizes["filter"] == 3
    assert Lesion().run(fitted, recording).sizes["lesion"] == 3 + 2 + 3
    with pytest.raises(UserError, match="use the whole field"):
        part = fitted.cropped(slice(0, 7), slice(0, 7))
        part.activity(recording["test"].to_dataset().isel(y=slice(7), x=slice(7)), "recurrent")
    for layer in ("layer1", "recurrent"):
        search = OptimalStimulus.with_options(layer=layer, units=[0], steps=3, seeds=1)
        assert search.run(fitted, recording).sizes["seed"] == 1


def test_the_second_kernel_is_reduced_to_a_small_map():
    recording = small_recording(frames=200)
    model = CRNN(SMALL | {"kernels": [7, 3]})
    model.fit(recording)
    assert model.parameters()["kernel_2"].shape == (2, 3, 2, 2)
    with pytest.raises(UserError, match="make the first of kernels smaller"):
        CRNN(SMALL | {"kernels": [9, 3]}).fit(recording)


def test_a_state_in_time_needs_runs_of_frames():
    assert CRNN({"axis": "time"}).config.order == "contiguous"
    assert CRNN({"axis": "time", "recurrence": "none"}).config.order == "shuffled"
    with pytest.raises(UserError, match="set order: contiguous"):
        CRNN(SMALL | {"axis": "time", "order": "shuffled"}).fit(small_recording(frames=200))


def test_a_memory_in_time_reaches_beyond_the_lags():
    random = np.random.default_rng(0)
    signal = random.choice([-1.0, 1.0], 3000).astype(np.float32)
    rate = np.exp(np.roll(signal, 2))[:, None]  # of two frames before
    split = make_split(signal[:, None, None], rate, frame_interval=0.03, rate=rate)
    recording = make_recording(dict.fromkeys(("train", "validation", "test"), split))
    options = SMALL | {"lags": 1, "kernels": [1, 1], "units": 8, "steps": 200, "target": "rate"}
    options |= {"gates": "torch", "decay": "constant", "noise": 0}
    options |= {
        "check_every": 100,
        "kernel_l2": 0,
        "dense_l2": 0,
        "activity_l1": 0,
        "learning_rate": 0.03,
    }
    scores = {}
    for axis in ("feature", "time"):
        model = CRNN(options | {"axis": axis})
        model.fit(recording)
        predicted = model.predict(recording["test"])[10:, 0]
        scores[axis] = np.corrcoef(predicted, rate[10:, 0])[0, 1]
    assert scores["time"] > 0.9 and abs(scores["feature"]) < 0.1


def test_cells_of_a_group_are_divided_by_their_sum():
    field = xr.Dataset(coords={"cell": range(7), "y": range(8), "x": range(8), "lag": range(5)})
    module: Any = CRNN(SMALL | {"recurrence": "none", "group": 3}).build(field)
    group = module.group.numpy()
    assert sorted(np.bincount(group)) == [3, 4]  # the seventh cell is in one of two groups
    x = torch.randn(5, 7)
    total = module._sum_of_group(x)
    for cell in range(7):
        expected = x[:, group == group[cell]].abs().sum(1)
        torch.testing.assert_close(total[:, cell], expected)
    recording = small_recording(frames=200, cells=4)
    model = CRNN(SMALL | {"group": 2})
    model.fit(recording)
    assert np.isfinite(model.predict(recording["test"])[4:]).all()
    groups = model.parameters()["group"]
    assert groups.dims == ("cell",) and sorted(groups.values) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="leave out group"):
        CRNN(SMALL | {"group": 3}).fit(small_recording(frames=200, cells=1))


def test_the_model_is_registered():
    assert load_entry(Registry(builtin_only=True).find("model", "crnn")) is CRNN
