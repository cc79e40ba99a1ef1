"""The network that separates what from where: what it computes, what it finds, what it refuses."""

import numpy as np
import pydantic
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Lasso

from retinakit.contracts import SPLITS, UserError, coordinates_of, make_recording
from retinakit.scores import fraction_of_explained_variance
from retinakit.testing import small_recording
from retinakit.training import Certificate, ExactZeros
from retinakit_plugins.analyses.subunits import Subunits
from retinakit_plugins.datasets.linear_population import LinearPopulation
from retinakit_plugins.models.regression import Ridge
from retinakit_plugins.models.what_where import WhatWhere

LINEAR = {
    "filters": [1],
    "kernels": [7],
    "activation": "identity",
    "output": "identity",
    "loss": "mse",
    "offset": False,
    "bias": False,
    "accelerator": "cpu",
}
PENALISED = LINEAR | {"mask_l1": 0.1, "steps": 500, "learning_rate": 3e-3}
SHORT = {"steps": 30, "batch": 100, "check_every": 10, "accelerator": "cpu"}


def population(samples, **options):
    small = {"cells": 30, "kernel": 7, "height": 16, "width": 15, "test": 500}
    return LinearPopulation(small | {"samples": samples} | options).load()


def fev(model, recording):
    test = recording["test"].to_dataset()
    scores = fraction_of_explained_variance(model.predict(test), test["rate"])
    return float(scores.mean())


def made(field, channels=None, **options):
    """A model with random parameters, without a fit."""
    model = WhatWhere(options)
    shape = (1, *(() if channels is None else (channels,)), *field)
    dims = ("frame", "y", "x") if channels is None else ("frame", "channel", "y", "x")
    split = xr.Dataset(
        {"stimulus": (dims, np.zeros(shape))}, {"cell": np.arange(3)}, {"frame_interval": 0.1}
    )
    model.field = coordinates_of(split, model.lags)
    torch.manual_seed(0)
    model.module = model.build(model.field).eval()
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.normal_()
    return model


def shown(*shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    dims = ("frame", "y", "x") if len(shape) == 3 else ("frame", "channel", "y", "x")
    return xr.DataArray(values, dims=dims)


class TestParameters:
    def test_labelled_parameters_say_what_a_linear_network_computes(self):
        model = made((9, 8), **(LINEAR | {"filters": [2], "kernels": [4]}), normalisation="unit")
        stimulus, parameters = shown(5, 9, 8), model.parameters()
        kernel, mask = parameters["kernel"].values[:, 0], parameters["mask"].values
        expected = np.zeros((5, 3))
        for i, y in enumerate(parameters["map_y"].values):
            for j, x in enumerate(parameters["map_x"].values):
                seen = stimulus.values[:, y : y + 4, x : x + 4]
                drive = np.einsum("nyx,fyx->nf", seen, kernel)
                weights = parameters["feature_weight"].values
                expected += np.einsum("nf,cf,c->nc", drive, weights, mask[:, i, j])
        np.testing.assert_allclose(model.predict(stimulus), expected, atol=1e-4)
        assert parameters["centre_y"].values.tolist() == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
        np.testing.assert_allclose((kernel**2).sum((1, 2)), 1, rtol=1e-5)

    @pytest.mark.parametrize("padding", ["valid", "same"])
    def test_layers_are_convolutions_with_their_nonlinearities(self, padding):
        from torch.nn.functional import conv2d, softplus

        model = made(
            (12, 11),
            channels=2,
            filters=[4, 3],
            kernels=[5, 3],
            padding=padding,
            normalisation="none",
            activation="softplus",
            last_activation="identity",
            positive_mask=True,
        )
        stimulus, p = shown(6, 2, 12, 11), model.parameters()
        first, second = (torch.from_numpy(p[n].values) for n in ("kernel", "kernel_2"))
        offsets = [torch.from_numpy(p[n].values) for n in ("kernel_bias", "kernel_bias_2")]
        hidden = softplus(conv2d(torch.from_numpy(stimulus.values), first[:, 0], offsets[0]))
        maps = conv2d(hidden, second, offsets[1], padding=padding).numpy()
        drive = np.einsum("nkyx,cyx,ck->nc", maps, p["mask"], p["feature_weight"])
        expected = np.logaddexp(0, drive + p["output_bias"].values)
        np.testing.assert_allclose(model.predict(stimulus), expected, rtol=1e-3, atol=1e-3)
        assert (p["mask"] >= 0).all()

    def test_kernels_reach_into_the_past(self):
        model = made((6, 6), **(LINEAR | {"kernels": [6]}), lags=3, normalisation="none")
        stimulus, p = shown(10, 6, 6), model.parameters()
        by_lag = np.einsum("nyx,lyx->nl", stimulus, p["kernel"][0])
        weight = (p["mask"][:, 0, 0] * p["feature_weight"][:, 0]).values
        expected = [sum(by_lag[t - lag, lag] for lag in range(3)) for t in range(2, 10)]
        np.testing.assert_allclose(
            model.predict(stimulus)[2:], np.outer(expected, weight), atol=1e-3
        )

    def test_frames_are_predicted_the_same_in_blocks(self, monkeypatch):
        from retinakit_plugins.models import what_where

        model = made((8, 8), filters=[3], kernels=[3], lags=2, readout="gaussian")
        stimulus = shown(100, 8, 8)
        whole = model.predict(stimulus)
        monkeypatch.setattr(what_where, "EVALUATED", 7)
        np.testing.assert_allclose(model.predict(stimulus), whole, atol=1e-5)


class TestFits:
    def test_many_cells_together_tell_more_than_each_alone(self):
        recording = population(500)
        ridge, network = Ridge({"crop": 7, "centre": "truth"}), WhatWhere(PENALISED)
        for model in (ridge, network):
            model.fit(recording)
        assert fev(network, recording) > 0.8 > 0.65 > fev(ridge, recording)
        truth, p = recording["truth"].to_dataset(), network.parameters()
        kernel = p["kernel"].values[0, 0]
        cosine = np.vdot(kernel, truth["kernel"][0]) / np.linalg.norm(kernel)
        cosine /= np.linalg.norm(truth["kernel"][0])
        assert abs(cosine) > 0.95

    def test_a_known_kernel_is_kept_and_helps(self):
        recording = population(200)
        known, learned = WhatWhere(PENALISED | {"known_kernel": True}), WhatWhere(PENALISED)
        known.fit(recording)
        learned.fit(recording)
        np.testing.assert_allclose(
            known.parameters()["kernel"][:, 0], recording["truth/kernel"], rtol=1e-6
        )
        assert fev(known, recording) > fev(learned, recording) + 0.02

    @pytest.mark.parametrize(
        ("readout", "penalties"),
        [
            ("factorized", {"mask_l1": 0.1, "weight_l1": 0.04}),
            ("factorized", {"product_l1": 0.1, "normalise_mask": True}),
            ("full", {"readout_l2": 1.0, "activity_l1": 0.01}),
            ("fixed", {}),
            ("gaussian", {}),
        ],
    )
    def test_every_readout_learns(self, readout, penalties):
        recording = population(1500)
        options = LINEAR | penalties | {"filters": [2], "readout": readout, "steps": 300}
        model = WhatWhere(options | {"normalisation": "unit", "learning_rate": 3e-3})
        model.fit(recording)
        assert fev(model, recording) > 0.6
        parameters = model.parameters()
        if readout == "fixed":
            assert (np.sort(np.unique(parameters["mask"])) == [0, 1]).all()
        if readout == "full":
            assert parameters["output_weight"].dims == ("cell", "feature", "map_y", "map_x")

    @pytest.mark.parametrize("positive", [False, True])
    def test_masks_with_exact_zeros_are_those_of_the_lasso(self, positive):
        recording = population(400, cells=4)
        weight = 0.01
        model = WhatWhere(
            LINEAR
            | {"known_kernel": True, "normalisation": "none", "positive_mask": positive}
            | {"mask_l1": weight, "exact_zeros": True, "refresh_every": 50}
            | {"steps": 2000, "learning_rate": 0.02, "decay": "cosine", "patience": 0, "batch": 320}
            | {"check_every": 2000}
        )
        curves = model.fit(recording)
        train = recording["train"].to_dataset()
        with torch.no_grad():
            maps = model.module.core(torch.from_numpy(train["stimulus"].values)[:, None])
        # The loss has no ½, and is a sum over cells as the penalty is.
        lasso = Lasso(
            weight / 2, fit_intercept=False, positive=positive, tol=1e-12, max_iter=100_000
        )
        expected = lasso.fit(maps.flatten(1).numpy(), train["response"].values).coef_
        found = model.parameters()["mask"].values.reshape(4, -1)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert 0 < (found != 0).mean() < 0.2
        assert positive == (found >= 0).all()
        assert curves["certificate_outside"].item() < 1e-2
        assert curves["certificate_inside"].item() < 1e-2

    def test_exact_zeros_cost_no_accuracy(self):
        recording = population(500)
        dense, sparse = (
            WhatWhere(PENALISED | {"exact_zeros": zeros, "refresh_every": 50})
            for zeros in (False, True)
        )
        for model in (dense, sparse):
            model.fit(recording)
        assert (dense.parameters()["mask"] != 0).mean() == 1
        assert (sparse.parameters()["mask"] != 0).mean() < 0.1
        assert fev(sparse, recording) > fev(dense, recording) - 0.01

    def test_training_goes_on_while_a_zero_is_no_optimum(self, monkeypatch):
        asked = []

        def certificate(self, losses):
            asked.append(sum(loss.item() for loss in losses(None)))
            return Certificate(1.0, 0.0)

        monkeypatch.setattr(ExactZeros, "certificate", certificate)
        options = {"exact_zeros": True, "mask_l1": 0.1, "steps": 60, "check_every": 10}
        stalled = {"patience": 1, "drops": 0, "learning_rate": 1e-30, "normalisation": "none"}
        curves = WhatWhere(LINEAR | options | stalled).fit(population(200))
        # Asked at the first stall; the next, with the same best weights, ends it; asked at the end.
        assert curves["step"].max() == 30 and len(asked) == 2

    def test_nothing_depends_on_the_number_of_cells(self):
        recording = population(100, cells=4)

        def doubled(split):
            if "response" not in split:
                return split
            twice = split.isel(cell=np.tile(np.arange(4), 2))
            return twice.assign_coords(cell=np.arange(8))

        weights = {"mask_l1": 0.1, "weight_l1": 0.1, "product_l1": 0.1, "smoothness": 0.01}
        model = WhatWhere(LINEAR | weights | {"filters": [2]})
        for data in (recording, recording.map_over_datasets(doubled)):
            model.field = coordinates_of(data["train"].to_dataset(), 1)
            module = model.build(model.field)
            model.initialise(module, data)
            with torch.no_grad():  # the same masks for each pair, and the same kernels
                generator = torch.Generator().manual_seed(1)
                for parameter in module.core.kernel.parameters():
                    parameter.normal_(generator=generator)
                for parameter in (module.readout.mask, module.readout.feature_weight):
                    half = torch.randn(len(parameter), 4, generator=generator)
                    parameter.copy_(half.repeat(1, parameter.shape[1] // 4))
            prediction = module(torch.from_numpy(data["train/stimulus"].values[:10]))
            found = model.penalty(module, prediction) / data["train"].sizes["cell"]
            if data is recording:
                expected = found
        torch.testing.assert_close(found, expected)

    def test_recordings_with_a_core_in_common_are_predicted_better_than_each_alone(self):
        whole = population(500)

        def part(cells, frames, interval):
            splits = {n: whole[n].to_dataset().isel(cell=cells) for n in SPLITS}
            splits["train"] = splits["train"].isel(frame=frames)
            for name, split in splits.items():
                time = split["time"] * interval / split.attrs["frame_interval"]
                splits[name] = split.assign_coords(time=time).assign_attrs(frame_interval=interval)
            return make_recording(splits)

        options = PENALISED | {"mask_l1": 0.03, "steps": 300}
        recordings = {
            "long": part(slice(18), slice(None), 0.1),
            "short": part(slice(18, 30), slice(200), 0.05),
        }
        alone = [WhatWhere(options).fit(one)["best_validation_loss"] for one in recordings.values()]
        separate = np.average([loss.item() for loss in alone], weights=[18, 12])
        shared = WhatWhere(options).fit(recordings)["best_validation_loss"].item()
        assert shared < separate

    def test_early_predictions_are_normalised_by_what_was_seen(self):
        model = WhatWhere(LINEAR | SHORT | {"steps": 1, "check_every": 1, "learning_rate": 1e-9})
        recording = population(200)
        model.fit(recording)
        seen = torch.from_numpy(recording["train/stimulus"].values)[:, None]
        features = model.module.core(seen)
        assert features.std().item() == pytest.approx(1, rel=0.05)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"filters": [2, 2], "kernels": [3]}, "one entry of each for every layer"),
            ({"filters": [0], "kernels": [3]}, "1 or more"),
            ({"output": "identity"}, "the Poisson loss is not defined"),
            ({"mask_l1": 0.1}, "the other factor can take up the scale"),
            ({"known_kernel": True}, "network of one layer"),
            ({"exact_zeros": True}, "a mask_l1 above 0"),
            (
                {"exact_zeros": True, "mask_l1": 1, "weight_l1": 1, "readout": "gaussian"},
                "needs readout: factorized",
            ),
        ],
    )
    def test_options_that_do_not_go_together(self, options, message):
        with pytest.raises(pydantic.ValidationError, match=message):
            WhatWhere(options)

    def test_a_field_smaller_than_the_filters(self):
        with pytest.raises(UserError, match="larger than 12 checks and it has 8 x 8"):
            WhatWhere(SHORT).fit(small_recording(frames=200))

    def test_a_known_kernel_that_is_unknown_or_of_another_size(self):
        options = LINEAR | SHORT | {"known_kernel": True}
        with pytest.raises(UserError, match="has no 'kernel'"):
            WhatWhere(options).fit(small_recording(frames=200))
        with pytest.raises(UserError, match=r"are \(1, 7, 7\) and the network's are \(1, 5, 5\)"):
            WhatWhere(options | {"kernels": [5]}).fit(population(100))


def test_its_filters_are_in_no_place_of_the_stimulus():
    model, recording = WhatWhere(WhatWhere.quick), small_recording()
    model.fit(recording)
    with pytest.raises(UserError, match="shared by all cells"):
        Subunits().run(model, recording)


def test_it_starts_at_the_mean_response_of_many_spikes_in_a_bin():
    recording = small_recording(frames=400)
    for name in SPLITS:
        recording[name]["response"] = 300 + recording[name]["response"]
    model = WhatWhere(WhatWhere.quick | {"steps": 2, "check_every": 1, "learning_rate": 1e-6})
    assert np.isfinite(model.fit(recording)["validation_loss"]).all()
    predicted = model.predict(recording["test"])
    assert float(predicted.mean()) == pytest.approx(300, rel=0.1)
