"""The populations of Klindt et al. (2017): what is known of the simulated ones holds, and files
of the recorded one are read as they were published."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, max_pool2d

from retinakit.contracts import UserError
from retinakit.simulation import poisson_like
from retinakit_plugins.datasets.antolik2016 import Antolik2016
from retinakit_plugins.datasets.conv_population import VGG_LAYERS, ConvPopulation
from retinakit_plugins.datasets.linear_population import LinearPopulation


class TestLinearPopulation:
    def test_the_field_is_that_of_the_public_code(self):
        truth = LinearPopulation({"samples": 10, "test": 2, "cells": 3}).load()["truth"]
        kernel = truth["kernel"].values[0]
        assert np.sum(kernel**2) == pytest.approx(np.pi / 2 * 0.1**2)  # ⟨|r|⟩ = 0.1
        assert kernel[8, 8] == kernel.max() == pytest.approx(0.0395, abs=1e-4)
        # A centre of weight 1 in a surround of weight 2, but for the surround beyond the field.
        assert kernel.sum() < 0
        np.testing.assert_allclose(kernel, kernel.T)
        np.testing.assert_allclose(truth["receptive_field"], np.stack([kernel] * 3))

    def test_rates_are_products_of_the_field_at_its_location_with_the_stimulus(self):
        options = {"samples": 10, "test": 5, "cells": 6, "types": [0.6, 1.0]}
        shape = {"heterogeneity": 0.05, "centred": False, "height": 24, "width": 20}
        recording = LinearPopulation(options | shape, seed=3).load()
        test, truth = recording["test"].to_dataset(), recording["truth"].to_dataset()
        for cell in range(6):
            y, x = (int(truth[f"location_{axis}"][cell]) - 8 for axis in "yx")
            seen = test["stimulus"].values[:, y : y + 17, x : x + 17]
            rate = np.einsum("fyx,yx->f", seen, truth["receptive_field"].values[cell])
            np.testing.assert_allclose(test["rate"][:, cell], rate, atol=1e-5)
        assert truth["cell_type"].values.tolist() == [0, 0, 0, 1, 1, 1]

    def test_cells_of_a_heterogeneous_type_differ_and_have_their_types_size(self):
        options = {"samples": 10, "test": 2, "cells": 40, "types": [0.6, 1.0]}
        truth = LinearPopulation(options | {"heterogeneity": 0.05, "centred": False}).load()
        fields, kernels = truth["truth/receptive_field"].values, truth["truth/kernel"].values
        cosines = np.einsum("cyx,tyx->ct", fields, kernels) / np.sum(kernels**2, (1, 2))
        own = np.take_along_axis(cosines, truth["truth/cell_type"].values[:, None], 1)
        assert (own < 0.9999).all() and (own == cosines.max(1, keepdims=True)).all()

    def test_a_shorter_recording_is_the_first_part_of_a_longer_one_with_the_same_test(self):
        short, long = (LinearPopulation({"samples": n, "test": 5}).load() for n in (20, 40))
        assert short["train"].sizes["frame"] == 16
        for name in ("stimulus", "response"):
            np.testing.assert_allclose(short["train"][name], long["train"][name][:16], atol=1e-5)
            np.testing.assert_array_equal(short["test"][name], long["test"][name])

    def test_too_few_samples_are_refused(self):
        with pytest.raises(UserError, match="0 of 4 samples would be used for validation"):
            LinearPopulation({"samples": 4, "validation": 0.1}).load()


def test_the_noise_has_the_rate_as_variance():
    rate = np.tile([[0.1, -0.4, 0.0]], (200_000, 1))
    noisy = poisson_like(rate, np.random.default_rng(0))
    np.testing.assert_allclose(noisy.mean(0), rate[0], atol=5e-3)
    np.testing.assert_allclose(noisy.var(0), np.abs(rate[0]), rtol=0.02)


SMALL = {"samples": 40, "test": 10, "types": 3, "cells_per_type": 20, "size": 24}


@pytest.fixture
def vgg(tmp_path):
    """Random weights of the first four layers of VGG-19, as torchvision names them."""
    torch.manual_seed(0)
    sizes = ((64, 3), (64, 64), (128, 64), (128, 128))
    layers = {
        name: (torch.randn(n, m, 3, 3) * (2 / (9 * m)) ** 0.5, 0.1 * torch.randn(n))
        for name, (n, m) in zip(VGG_LAYERS, sizes, strict=True)
    }
    path = tmp_path / "vgg19.pth"
    torch.save(
        {
            f"{name}.{part}": w
            for name, ws in layers.items()
            for part, w in zip(("weight", "bias"), ws, strict=True)
        },
        path,
    )
    return path, list(layers.values())


class TestConvPopulation:
    @pytest.mark.parametrize("images", ["dead_leaves", "pink_noise", "photographs"])
    def test_rates_are_rectified_and_have_the_mean_of_their_type(self, images):
        options = SMALL | {"images": images, "samples": 1000, "test": 400}
        recording = ConvPopulation(options).load()
        test = recording["test"].to_dataset()
        assert float(test["rate"].min()) == 0
        assert float(test["rate"].mean()) == pytest.approx(0.1, rel=0.2)
        silent = (test["rate"] == 0).groupby(recording["truth"].to_dataset()["cell_type"])
        np.testing.assert_allclose(silent.mean(...), 0.6, atol=0.1)

    def test_a_cell_sees_the_checks_around_its_location_and_no_others(self, monkeypatch):
        from retinakit_plugins.datasets import conv_population

        shown = np.random.default_rng(0).standard_normal((1, 24, 24)).astype(np.float32)
        pokes = np.repeat(shown, 1 + 24 * 24, 0)
        pokes[1:].reshape(24 * 24, -1)[np.diag_indices(24 * 24)] += 3.0
        make = conv_population._patches
        monkeypatch.setattr(
            conv_population,
            "_patches",
            lambda scenes, n, size, random: (
                pokes if n == len(pokes) else make(scenes, n, size, random)
            ),
        )
        recording = ConvPopulation(SMALL | {"silent": 0.0, "test": len(pokes)}).load()
        rate, truth = recording["test/rate"].values, recording["truth"].to_dataset()
        seen = (rate[1:] != rate[0]).reshape(24, 24, -1)
        for cell in range(seen.shape[-1]):
            rows, columns = np.nonzero(seen[..., cell])
            y, x = int(truth["location_y"][cell]), int(truth["location_x"][cell])
            assert (rows.min(), rows.max()) == (y - 6, y + 6)
            assert (columns.min(), columns.max()) == (x - 6, x + 6)

    def test_spikes_are_counts_of_the_rate_and_test_images_are_repeated(self):
        options = SMALL | {"spikes": True, "repeats": 500, "samples": 200}
        recording = ConvPopulation(options).load()
        test = recording["test"].to_dataset()
        assert test["response"].dims == ("repeat", "frame", "cell")
        assert test["response"].dtype.kind == "i" and recording["train/response"].ndim == 2
        difference = test["response"].mean("repeat") - test["rate"]
        assert float(abs(difference).max()) < 5 * float(np.sqrt(test["rate"].max() / 500))
        assert abs(float(difference.mean())) < 2e-3

    def test_every_second_unit_of_vgg_is_one_of_the_network_with_strides(self, vgg):
        path, layers = vgg
        dataset = ConvPopulation(SMALL | {"network": "vgg19", "weights": path, "types": 128})
        images = np.random.default_rng(1).standard_normal((2, 24, 24)).astype(np.float32)
        dense = dataset._vgg19()(images)
        hidden = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1)
        for index, (weight, bias) in enumerate(layers):
            hidden = max_pool2d(hidden, 2) if index == 2 else hidden
            hidden = conv2d(hidden, weight, bias, padding=1).relu()
        order = np.random.default_rng([0, 4]).permutation(128)
        np.testing.assert_allclose(
            dense[..., ::2, ::2], hidden[:, order, 3:-3, 3:-3].numpy(), atol=1e-5
        )

    def test_units_of_vgg_are_scaled_to_the_mean_rate(self, vgg):
        options = SMALL | {"network": "vgg19", "weights": vgg[0], "test": 200}
        recording = ConvPopulation(options).load()
        assert float(recording["test/rate"].mean()) == pytest.approx(0.1, rel=0.2)

    def test_vgg_without_its_weights_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="needs torchvision's weights"):
            ConvPopulation(SMALL | {"network": "vgg19"}).load()
        torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(UserError, match="does not hold torchvision's weights"):
            ConvPopulation(SMALL | {"network": "vgg19", "weights": tmp_path / "other.pth"}).load()

    def test_patches_that_a_photograph_cannot_give_are_refused(self):
        with pytest.raises(UserError, match="make pixels or size smaller"):
            ConvPopulation(SMALL | {"images": "photographs", "pixels": 8}).load()


class TestAntolik2016:
    @pytest.fixture
    def files(self, tmp_path):
        random = np.random.default_rng(0)
        arrays = {
            "training_inputs": random.uniform(0, 2.55e-4, (50, 25)),
            "training_set": random.gamma(1.0, 1.0, (50, 3)),
            "validation_inputs": random.uniform(0, 2.55e-4, (6, 25)),
            "raw_validation_set": random.gamma(1.0, 1.0, (4, 6, 3)),
        }
        (tmp_path / "region1").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "region1" / f"{name}.npy", array)
        return tmp_path, arrays

    def test_images_are_divided_as_in_the_paper_and_z_scored_by_the_training_images(self, files):
        recording = Antolik2016({"root": files[0]}, seed=1).load()
        train, validation, test = (
            recording[name].to_dataset() for name in ("train", "validation", "test")
        )
        assert (train.sizes["frame"], validation.sizes["frame"]) == (40, 10)
        together = np.concatenate([train["image"], validation["image"]])
        np.testing.assert_array_equal(np.sort(together), np.arange(50))
        images = files[1]["training_inputs"].reshape(50, 5, 5)
        mean, deviation = (f(images[train["image"].values], 0) for f in (np.mean, np.std))
        for split, raw in (
            (validation, images[validation["image"].values]),
            (test, files[1]["validation_inputs"].reshape(6, 5, 5)),
        ):
            np.testing.assert_allclose(split["stimulus"], (raw - mean) / deviation, atol=1e-4)
        responses = files[1]["training_set"][train["image"].values]
        np.testing.assert_allclose(train["response"], responses, rtol=1e-6)
        assert test["response"].dims == ("repeat", "frame", "cell")
        np.testing.assert_allclose(test["response"], files[1]["raw_validation_set"], rtol=1e-6)

    def test_the_folder_is_found_through_the_environment_or_asked_for(self, files, monkeypatch):
        monkeypatch.delenv("RETINAKIT_DATA", raising=False)
        with pytest.raises(
            UserError, match="RETINAKIT_DATA to the folder that contains antolik2016"
        ):
            Antolik2016({}).files()
        monkeypatch.setenv("RETINAKIT_DATA", str(files[0]))
        expected = files[0] / "antolik2016" / "region3" / "training_inputs.npy"
        assert Antolik2016({"scan": 3}).files()[0] == expected

    def test_a_missing_file_and_one_of_another_shape_are_named(self, files):
        with pytest.raises(UserError, match=r"region2/training_inputs\.npy"):
            Antolik2016({"root": files[0], "scan": 2}).load()
        np.save(files[0] / "region1" / "training_set.npy", np.ones((49, 3)))
        with pytest.raises(UserError, match=r"responses \(49, 3\)"):
            Antolik2016({"root": files[0]}).load()
        np.save(files[0] / "region1" / "training_inputs.npy", np.ones((50, 24)))
        with pytest.raises(UserError, match="24 pixels and are not square"):
            Antolik2016({"root": files[0]}).load()
