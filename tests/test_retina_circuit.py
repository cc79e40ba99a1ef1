"""The circuit of bipolar, amacrine and ganglion cell types, and its training on clips."""

import io
import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from retinakit.contracts import Model, UserError, make_recording, make_split
from retinakit.layers import filter_clips
from retinakit.training import Frames
from retinakit_plugins.models.retina_circuit import RetinaCircuit

LAGS = 7
SMALL = {
    "lags": LAGS,
    "filter_lags": 4,
    "bipolar_types": 3,
    "amacrine_types": 2,
    "ganglion_types": 4,
    "bipolar_kernel": 4,
    "bipolar_stride": 2,
    "kernel": 3,
    "stride": 2,
    "batch": 5,
    "steps": 60,
    "check_every": 20,
    "accelerator": "cpu",
    # The options of training in the paper.
    "start": "uniform",
    "dropout": 0.4,
    "learning_rate": 1e-3,
    "decay": "constant",
}


def clips(number=30, lags=LAGS, size=16, names=("left", "right"), seed=0):
    """Clips of a bright bar that moves to the left or to the right."""
    random = np.random.default_rng(seed)

    def split(count):
        side = random.integers(0, 2, count)
        start = random.integers(0, size, count)[:, None]
        at = (start + np.where(side == 1, 1, -1)[:, None] * np.arange(lags)) % size
        movie = np.zeros((count, lags, size, size), np.uint8)
        movie[np.arange(count)[:, None], np.arange(lags), :, at] = 1
        response = np.full((count, lags, 2), np.nan, np.float32)
        response[:, -1] = np.eye(2)[side]
        return make_split(
            movie.reshape(-1, size, size),
            response.reshape(-1, 2),
            frame_interval=0.02,
            segment=np.repeat(np.arange(count), lags),
        ).assign_coords(cell=list(names))

    return make_recording({"train": split(number), "validation": split(10), "test": split(10)})


class Plain(nn.Module):
    """The network of the authors' code: a module for each type, of convolutions in 3D."""

    def __init__(self, types, taps, bipolar, kernel, lateral, strides, decision):
        super().__init__()
        self.types, self.taps = types, taps
        n, stride = types, (1, strides[1], strides[1])
        for i in range(n):
            spatial = {
                f"bipolar{i}.bipolar_space": nn.Conv3d(
                    1, 1, (1, bipolar, bipolar), (1, strides[0], strides[0])
                ),
                f"amacrine{i}.amacrine_space": nn.Conv3d(n, 1, (1, kernel, kernel), stride),
                f"ganglion{i}.ganglion_bipolar_space": nn.Conv3d(n, 1, (1, kernel, kernel), stride),
                f"ganglion{i}.ganglion_amacrine_space": nn.Conv3d(
                    n, 1, (1, lateral, lateral), padding=(0, lateral // 2, lateral // 2)
                ),
            }
            for name, module in spatial.items():
                parent, _, child = name.partition(".")
                if not hasattr(self, parent):
                    self.add_module(parent, nn.Module())
                getattr(self, parent).add_module(child, module)
            for layer in ("bipolar", "amacrine", "ganglion"):
                getattr(self, f"{layer}{i}").add_module(
                    f"{layer}_temporal", nn.Conv3d(1, 1, (taps, 1, 1))
                )
        for side in ("Left", "Right"):
            holder = nn.Module()
            holder.add_module("decision_space", nn.Conv3d(n, 1, (1, *decision)))
            self.add_module(f"decision{side}", holder)

    def clamp(self):
        for name, weight in self.named_parameters():
            if name.startswith(("amacrine", "ganglion")) and name.endswith("weight"):
                weight.data.clamp_(min=0)

    def layer(self, name, *inputs):
        found = []
        for i in range(self.types):
            one = getattr(self, f"{name}{i}")
            maps = [child for key, child in one.named_children() if not key.endswith("_temporal")]
            summed = sum(conv(given) for conv, given in zip(maps, inputs, strict=True))
            padded = nn.functional.pad(summed, (0, 0, 0, 0, self.taps - 1, 0))
            found.append(getattr(one, f"{name}_temporal")(padded).relu())
        return torch.cat(found, 1)

    def forward(self, frames):
        bipolar = self.layer("bipolar", frames)
        ganglion = self.layer("ganglion", bipolar, -self.layer("amacrine", bipolar))
        sides = [getattr(self, f"decision{side}").decision_space for side in ("Left", "Right")]
        return torch.cat([side(ganglion) for side in sides], 1)[:, :, -1, 0, 0]


def test_the_papers_network_has_7682_weights():
    field = {"lag": 51, "y": 255, "x": 255, "cell": 2}
    module = RetinaCircuit().build(xr.Dataset(coords={k: np.arange(n) for k, n in field.items()}))
    assert module.bipolar_map == (50, 50)
    assert module.map == (12, 12)
    assert sum(p.numel() for p in module.parameters()) == 7682


def test_clips_are_filtered_with_zeros_before_their_first_frame():
    torch.manual_seed(0)
    maps, weight = torch.randn(2, 6, 3, 4, dtype=torch.double), torch.randn(4, 3).double()
    kernel = weight.flip(0).T[:, None]
    for at in range(4):
        padded = nn.functional.pad(maps[..., at].transpose(1, 2), (3, 0))
        expected = nn.functional.conv1d(padded, kernel, groups=3).transpose(1, 2)
        for first in (0, 4):
            found = filter_clips(maps, weight, first)[..., at]
            torch.testing.assert_close(found, expected[:, first:])


@pytest.mark.parametrize(("lags", "taps"), [(7, 4), (12, 3), (4, 6)])
def test_weights_of_the_authors_give_the_authors_predictions(tmp_path, lags, taps):
    """With clips that are longer than the filters of three layers, and shorter than one."""
    options = {"bipolar_types": 3, "amacrine_types": 3, "ganglion_types": 3, "bipolar_kernel": 4}
    options |= {"bipolar_stride": 2, "kernel": 3, "stride": 2, "lags": lags, "filter_lags": taps}
    path = tmp_path / "model.pt"
    torch.manual_seed(2)
    plain = Plain(3, taps, 4, 3, 3, (2, 2), (3, 3))
    plain.clamp()
    torch.save(plain.state_dict(), path)
    recording = clips(lags=lags, names=("right", "left"))
    model = RetinaCircuit(options | {"weights": path})
    curves = model.fit(recording)
    test = recording["test"].to_dataset()
    movie = torch.from_numpy(test["stimulus"].values.astype(np.float32))
    with torch.no_grad():
        expected = plain(movie.view(10, 1, lags, 16, 16)).softmax(1).flip(1).numpy()
    predicted = model.predict(test).values
    np.testing.assert_allclose(predicted[lags - 1 :: lags], expected, atol=1e-6)
    assert float(model.activity(test, "ganglion").max()) > 0
    assert np.isfinite(curves["validation_loss"]).all()
    assert model.files() == [path]


def test_a_file_of_other_weights_is_named(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"other\.pt does not hold the weights of the circuit"):
        RetinaCircuit(SMALL | {"weights": path}).fit(clips())
    torch.save(Plain(3, 4, 4, 3, 3, (2, 2), (2, 3)).state_dict(), path)
    with pytest.raises(UserError, match="'decoder' has the shape"):
        RetinaCircuit(SMALL | {"weights": path, "amacrine_types": 3, "ganglion_types": 3}).fit(
            clips()
        )


@pytest.mark.filterwarnings("error")
def test_a_file_that_torch_cannot_read_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    whole = path.read_bytes()
    state = Plain(3, 4, 4, 3, 3, (2, 2), (3, 3)).state_dict()
    state["ganglion0.ganglion_temporal.bias"] += torch.nan
    of_nan = io.BytesIO()
    torch.save(state, of_nan)
    bad = {"RuntimeError": whole[:200], "EOFError": b"", "UnpicklingError": pickle.dumps(Path)}
    for reason, content in {**bad, "infinite or NaN": of_nan.getvalue()}.items():
        path.write_bytes(content)
        types = {"amacrine_types": 3, "ganglion_types": 3}
        with pytest.raises(UserError, match=reason) as caught:
            RetinaCircuit(SMALL | {"weights": path} | types).fit(clips())
        assert len(str(caught.value)) < 200 + len(str(path))


@pytest.fixture(scope="module")
def fitted():
    recording = clips()
    model = RetinaCircuit(SMALL | {"start": "scaled"}, seed=1)
    return recording, model, model.fit(recording)


def test_weights_of_amacrine_and_ganglion_cells_are_not_negative(fitted):
    parameters = fitted[1].parameters()
    for name, weights in parameters.data_vars.items():
        if not name.endswith("bias"):
            constrained = name.startswith(("amacrine", "ganglion"))
            assert (float(weights.min()) >= 0) == constrained


def test_the_validation_loss_is_the_cross_entropy_of_the_clips(fitted):
    recording, model, curves = fitted
    split = recording["validation"].to_dataset()
    right = model.predict(split).where(split["response"] == 1).max("cell")[LAGS - 1 :: LAGS]
    expected = -np.log(right).mean()
    np.testing.assert_allclose(curves["best_validation_loss"], expected, rtol=1e-5)


def test_a_start_that_is_scaled_has_the_standard_deviation_1():
    recording = clips(15)  # as many as the start is computed from
    model = RetinaCircuit(SMALL | {"start": "scaled"})
    model.field = xr.Dataset(coords={"cell": [0, 1], "y": np.arange(16), "x": np.arange(16)})
    module = model.build(model.field)
    model.initialise(module, recording)
    movie = torch.from_numpy(recording["train"]["stimulus"].values.astype(np.float32))
    with torch.no_grad():
        module.eval()
        logits = module.decided(module.last(movie, every=LAGS))
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)


class Inhibited(RetinaCircuit):
    """Ganglion cells of the first networks that are built are inhibited too strongly to fire."""

    inhibited = 1

    def build(self, field):
        module = super().build(field)
        if self.inhibited:
            self.inhibited -= 1
            torch.nn.init.constant_(module.ganglion_time_bias, -100.0)
        return module


def test_a_fit_in_which_no_ganglion_cell_fires_says_so():
    with pytest.raises(UserError, match=r"no ganglion cell type fired .*set start: scaled"):
        Inhibited(SMALL).fit(clips())


def test_another_start_is_chosen_where_no_ganglion_cell_fires_in_the_first():
    curves = Inhibited(SMALL | {"starts": 2}).fit(clips())
    assert curves["silent"].values.tolist() == [1, 0]
    assert curves["step"].isel(start=0).count() == 1


def test_bits_of_the_training_frames_are_the_frames():
    split = clips()["train"].to_dataset()
    device = torch.device("cpu")
    frames, packed = (Frames(split, "response", LAGS, device, packed=p) for p in (False, True))
    ends = np.array([4 * LAGS - 1, LAGS - 1])
    (expected,), (bits, values) = frames.windows(ends).inputs, packed.windows(ends).inputs
    assert bits.dtype == torch.uint8
    assert bits.shape == (2 * LAGS, 32)
    module = RetinaCircuit(SMALL).build(split)
    found = module.clips(bits, values, LAGS)
    torch.testing.assert_close(found.reshape(expected.shape), expected)


def test_lesions_from_stored_inputs_are_those_of_copies_without_the_units():
    recording = clips()
    model = RetinaCircuit(SMALL | {"start": "scaled", "steps": 5})
    model.fit(recording)
    test = recording["test"].to_dataset()
    units = [(layer, unit) for layer, number in model.units(test).items() for unit in range(number)]
    combinations_of_two = [
        {
            layer: [u for one, u in units if one == layer and (one, u) not in kept]
            for layer, _ in units
        }
        for kept in combinations(units, 2)
    ]
    singles = [{layer: [unit]} for layer, unit in units]
    silent = [{}, *singles, *combinations_of_two, {"amacrine": [0, 1], "bipolar": [2]}]
    fast = np.stack(list(model.lesions(test, silent)))
    direct = np.stack(list(Model.lesions(model, test, silent)))
    np.testing.assert_allclose(fast, direct, atol=2e-6)
    known = np.isfinite(direct[0, :, 0])
    assert len(np.unique(direct[:, known].round(4), axis=0)) > len(units)
    with pytest.raises(UserError, match="there is no unit 3"):
        list(model.lesions(test, [{"bipolar": [3]}]))
