"""What a torch model may be beyond frames in and rates out: see `retinakit.TorchModel`."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn.functional import softplus

from retinakit import RecordingError, TorchModel, UserError
from retinakit.contracts import make_recording, make_split
from retinakit.testing import small_recording
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.rectified_linear import LNP, RectifiedLinear
from retinakit_plugins.models.what_where import WhatWhere

FAST = {"lags": 1, "steps": 400, "batch": 100, "check_every": 50, "learning_rate": 0.02}


class Leaky(TorchModel):
    """The mean of a frame, integrated with a learned leak: a state in time."""

    stateful = True

    def build(self, field: xr.Dataset) -> nn.Module:
        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.leak, self.gain = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(1))

            def forward(self, frames: Any, state: Any) -> Any:
                drive, rates = frames.flatten(1).mean(1), []
                state = torch.zeros(()) if state is None else state
                for value in drive:
                    state = torch.sigmoid(self.leak) * state + value
                    rates.append(softplus(self.gain * state))
                return torch.stack(rates), state

        return Module()

    def parameters(self) -> xr.Dataset:
        return xr.Dataset({"leak": float(torch.sigmoid(self.module.leak))})


class Gated(TorchModel):
    """A rate that the pupil alone sets."""

    inputs = ("stimulus", "covariates")

    def build(self, field: xr.Dataset) -> nn.Module:
        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(field.sizes["covariate"]))

            def forward(self, frames: Any, covariate: Any) -> Any:
                return torch.exp(covariate @ self.weight)[:, None]

        return Module()

    def parameters(self) -> xr.Dataset:
        return xr.Dataset({"weight": ("covariate", self.module.weight.detach().numpy())})


class NegativeBinomial(TorchModel):
    """A constant rate and a learned dispersion."""

    def build(self, field: xr.Dataset) -> nn.Module:
        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.log_rate = nn.Parameter(torch.zeros(field.sizes["cell"]))
                self.log_size = nn.Parameter(torch.zeros(field.sizes["cell"]))

            def forward(self, frames: Any) -> Any:
                return self.log_rate.exp().expand(len(frames), -1)

        return Module()

    def loss(self, module: Any, prediction: Any, target: Any) -> Any:
        size = module.log_size.exp()
        spikes = torch.distributions.NegativeBinomial(size, logits=(prediction / size).log())
        return -spikes.log_prob(target)

    def parameters(self) -> xr.Dataset:
        return xr.Dataset({"size": ("cell", self.module.log_size.exp().detach().numpy())})


def flat(signal: np.ndarray, response: np.ndarray, **more: Any) -> xr.DataTree:
    """A recording of full-field frames, the same in every split."""
    split = make_split(
        signal[:, None, None].astype(np.float32), response, frame_interval=0.1, **more
    )
    return make_recording({"train": split, "validation": split, "test": split})


def test_a_state_is_carried_through_a_segment_and_not_into_the_next():
    random = np.random.default_rng(0)
    signal, segment = random.normal(size=1200), np.repeat([0, 1, 2], [500, 300, 400])
    state = np.zeros(1200)
    for t in range(1200):
        before = state[t - 1] if t and segment[t] == segment[t - 1] else 0
        state[t] = 0.8 * before + signal[t]
    recording = flat(signal, np.logaddexp(0, state)[:, None], segment=segment, units="Hz")
    model = Leaky(FAST | {"loss": "mse", "learning_rate": 0.1, "steps": 150})
    model.fit(recording)
    assert float(model.parameters()["leak"]) == pytest.approx(0.8, abs=0.01)
    predicted = model.predict(recording["test"])
    np.testing.assert_allclose(predicted[:, 0], np.logaddexp(0, state), atol=0.05)
    alone = model.predict(recording["test"].to_dataset().isel(frame=slice(500, 800)))
    np.testing.assert_allclose(alone, predicted[500:800], atol=1e-6)


def test_covariates_reach_the_module_and_are_missed_where_they_are_not():
    random = np.random.default_rng(0)
    pupil = random.normal(size=(1000, 2))
    counts = random.poisson(np.exp(pupil @ [0.7, -0.4]))[:, None]
    recording = flat(np.zeros(1000), counts, covariates=pupil)
    model = Gated(FAST)
    model.fit(recording)
    np.testing.assert_allclose(model.parameters()["weight"], [0.7, -0.4], atol=0.1)
    with pytest.raises(RecordingError, match="covariate"):
        model.predict(recording["test"].to_dataset().drop_vars("covariates"))
    with pytest.raises(RecordingError, match="covariate"):
        Gated(FAST).fit(flat(np.zeros(1000), counts))


def test_a_likelihood_of_its_own_has_parameters_of_its_own():
    random = np.random.default_rng(0)
    rate = random.gamma(2.0, 1.5, (4000, 1))  # mean 3, size 2
    model = NegativeBinomial(FAST)
    model.fit(flat(np.zeros(4000), random.poisson(rate)))
    assert model.parameters()["size"].item() == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LNP, {}),
        (RectifiedLinear, {}),
        (CNN, {}),
        (CNN, {"rank": 1}),
        (WhatWhere, {}),
        (WhatWhere, {"kernels": [7, 1]}),
    ],
)
def test_shuffled_windows_are_predicted_and_learned_from_as_contiguous_frames(kind, options):
    torch.manual_seed(0)
    field = small_recording(frames=50, truth=False)["train"].to_dataset()
    model = kind(kind.quick | {"lags": 3} | options)
    module = model.build(
        xr.Dataset(coords={n: field[n] for n in ("cell", "y", "x")} | {"lag": range(3)})
    )
    module.eval()
    weights = [w for w in module.parameters() if w.requires_grad]
    for weight in weights:  # no filter is 0, and no gradient vanishes
        weight.data += 0.1 * torch.randn_like(weight)
    movie = torch.from_numpy(field["stimulus"].values).float()
    drawn = torch.tensor([7, 30, 2])
    windows = movie[(drawn[:, None] + torch.arange(-2, 1)).flatten()]
    expected = module(movie)[drawn - 2]  # the first one is that of frame 2
    found = module(windows, every=3)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((y**2).sum(), weights) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_shuffled_training_needs_no_more_than_single_known_frames():
    """A response that is known in the last frame of each clip alone, as in a task."""
    random = np.random.default_rng(0)
    signal, segment = random.normal(size=3000), np.repeat(np.arange(600), 5)
    drive = np.convolve(signal, [0.2, 0.5, -0.3])[:3000]
    response = np.full((3000, 1), np.nan)
    response[4::5, 0] = random.poisson(np.exp(drive[4::5]))
    recording = flat(signal, response, segment=segment)
    model = LNP(FAST | {"lags": 3, "order": "shuffled", "smoothness": 0.0, "sparsity": 0.0})
    model.fit(recording)
    kernel = model.parameters()["kernel"].values.ravel()
    np.testing.assert_allclose(kernel, [0.2, 0.5, -0.3], atol=0.1)


class TestCellsApart:
    """A cell's fit does not depend on another's presence or gaps."""

    OPTIONS: ClassVar = {"lags": 3, "steps": 60, "batch": 200, "check_every": 10}
    STOPPING: ClassVar = OPTIONS | {"decay": "drop", "patience": 1, "steps": 400}

    @pytest.fixture(scope="class")
    def recording(self):
        return small_recording(frames=1500, truth=False)

    def kernels(self, kind, options, recording):
        model = kind(options)
        model.fit(recording)
        return model.parameters()["kernel"]

    @pytest.mark.parametrize("kind", [LNP, RectifiedLinear, LNP])
    @pytest.mark.parametrize("options", [OPTIONS, STOPPING], ids=["cosine", "stopping"])
    def test_alone_beside_another_and_beside_one_that_was_lost(self, kind, options, recording):
        beside = self.kernels(kind, options, recording)

        def only(cells):
            return recording.map_over_datasets(lambda s: s.isel(cell=cells) if s.sizes else s)

        for cell in (0, 1):
            alone = self.kernels(kind, options, only([cell]))
            np.testing.assert_allclose(alone[0], beside[cell], rtol=1e-3, atol=1e-4)

        def lost(split):
            if "response" not in split:
                return split
            early = xr.DataArray(np.arange(split.sizes["frame"]) < 200, dims="frame")
            response = split["response"].astype(float).where(early | (split["cell"] == 0))
            return split.assign(response=response.transpose(*split["response"].dims))

        gap = self.kernels(kind, options, recording.map_over_datasets(lost))
        np.testing.assert_allclose(gap[0], beside[0], rtol=1e-3, atol=1e-4)
        assert abs(gap[1] - beside[1]).max() > 1e-3


class TestSeveralRecordings:
    OPTIONS: ClassVar = WhatWhere.quick | {"lags": 2, "steps": 120, "batch": 100}

    @pytest.fixture(scope="class")
    def recordings(self):
        long, short = small_recording(frames=1200, cells=3), small_recording(frames=600, seed=1)
        for split in ("train", "validation", "test"):
            short[split].attrs["frame_interval"] = 1 / 60
            short[split] = short[split].to_dataset().assign_coords(time=short[split]["time"] / 2)
        return {"a": long, "b": short}

    @pytest.fixture(scope="class")
    def fitted(self, recordings):
        model = WhatWhere(self.OPTIONS)
        model.fit(recordings)
        return model

    def test_each_has_its_cells_and_all_have_one_core(self, fitted, recordings):
        assert fitted.recordings == ("a", "b")
        one, other = fitted.of("a"), fitted.of("b")
        assert one.module.core is other.module.core
        for name, recording in recordings.items():
            rate = fitted.of(name).predict(recording["test"])
            assert rate.sizes["cell"] == recording["test"].sizes["cell"]
            assert np.isfinite(rate[2:]).all()
        parameters = fitted.parameters()
        assert list(parameters["cell"].values) == ["a/0", "a/1", "a/2", "b/0", "b/1"]
        assert list(parameters["recording"].values) == ["a"] * 3 + ["b"] * 2
        assert "cell" not in parameters["kernel"].dims
        with pytest.raises(UserError, match=r"of\(name\)"):
            fitted.predict(recordings["a"]["test"])

    def test_it_is_saved_and_loaded(self, fitted, recordings, tmp_path):
        fitted.save(tmp_path / "model.nc")
        loaded = WhatWhere.load(tmp_path / "model.nc")
        assert loaded.recordings == ("a", "b")
        for name, recording in recordings.items():
            xr.testing.assert_identical(
                loaded.of(name).predict(recording["test"]),
                fitted.of(name).predict(recording["test"]),
            )

    def test_an_interrupted_fit_goes_on(self, fitted, recordings, tmp_path):
        def stop(done, total, message=""):
            if done >= 60:
                raise KeyboardInterrupt

        model = WhatWhere(self.OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            model.fit(recordings, checkpoint=tmp_path / "checkpoint", progress=stop)
        model = WhatWhere(self.OPTIONS)
        model.fit(recordings, checkpoint=tmp_path / "checkpoint")
        xr.testing.assert_identical(model.state(), fitted.state())

    def test_it_can_be_fitted_anew_to_one_recording(self, recordings):
        again, expected = (WhatWhere(self.OPTIONS | {"steps": 10}) for _ in range(2))
        again.fit(recordings)
        for model in (again, expected):
            model.fit(recordings["a"])
        assert again.recordings == ()
        xr.testing.assert_identical(again.state(), expected.state())

    def test_what_cannot_be_is_refused(self, recordings):
        with pytest.raises(UserError, match="LNP can be fitted to one recording only"):
            LNP().fit(recordings)
        small = recordings["b"].map_over_datasets(lambda s: s.isel(x=slice(6)) if s.sizes else s)
        with pytest.raises(RecordingError, match="same field"):
            WhatWhere(self.OPTIONS).fit({"a": recordings["a"], "b": small})


@pytest.mark.parametrize("damage", ["another fit", "garbage"])
def test_a_checkpoint_that_does_not_fit_is_set_aside(damage, tmp_path, caplog):
    recording = small_recording(frames=600, truth=False)
    options = {"lags": 3, "steps": 40, "batch": 200, "check_every": 10}
    expected = LNP(options)
    expected.fit(recording)
    checkpoint = tmp_path / "checkpoint"
    if damage == "garbage":
        checkpoint.with_suffix(".0.pt").write_bytes(b"no checkpoint")
    else:
        LNP(options | {"smoothness": 1.0}).fit(recording, checkpoint=checkpoint)
    model = LNP(options)
    model.fit(recording, checkpoint=checkpoint)
    xr.testing.assert_identical(model.state(), expected.state())
    assert "starts from the beginning" in caplog.text
    assert checkpoint.with_suffix(".0.pt.unfit").exists()


def test_a_shorter_fit_does_not_take_a_longer_ones_checkpoint(tmp_path):
    recording = small_recording(frames=600, truth=False)
    options = {
        "lags": 3,
        "filters": 2,
        "kernel": 3,
        "batch": 200,
        "check_every": 10,
        "decay": "constant",
    }
    CNN(options | {"steps": 40}).fit(recording, checkpoint=tmp_path / "checkpoint")
    after, anew = CNN(options | {"steps": 20}), CNN(options | {"steps": 20})
    after.fit(recording, checkpoint=tmp_path / "checkpoint")
    anew.fit(recording)
    xr.testing.assert_identical(after.state(), anew.state())


def test_one_cell_whose_rate_is_no_number_is_told(monkeypatch):
    """The other cell, whose loss is a number, does not hide it."""

    def loss(self, module, prediction, target):
        return (prediction - target) ** 2 * torch.tensor([1.0, torch.nan])

    monkeypatch.setattr(TorchModel, "loss", loss)
    for kind in (LNP, CNN):  # cells that are fitted apart, and together
        with pytest.raises(RuntimeError, match="diverged"):
            kind(kind.quick | {"steps": 20}).fit(small_recording(frames=600, truth=False))


@pytest.mark.parametrize("decay", ["constant", "drop"])
def test_more_steps_go_on_from_a_finished_fit(decay, tmp_path):
    recording = small_recording(frames=600, truth=False)
    options = {
        "lags": 3,
        "filters": 2,
        "kernel": 3,
        "batch": 200,
        "check_every": 10,
        "decay": decay,
    }
    CNN(options | {"steps": 45}).fit(recording, checkpoint=tmp_path / "checkpoint")
    done = []
    further, whole = CNN(options | {"steps": 90}), CNN(options | {"steps": 90})
    further.fit(
        recording,
        checkpoint=tmp_path / "checkpoint",
        progress=lambda step, *_: done.append(step),
    )
    whole.fit(recording)
    assert done[0] == 50
    xr.testing.assert_identical(further.state(), whole.state())
