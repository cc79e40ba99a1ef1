"""Simulated populations of Klindt et al. (2017): what is known of them holds."""

import numpy as np
import pytest

from retinakit.errors import UserError
from retinakit.population import poisson_like
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
        with pytest.raises(UserError, match="of 4 samples 0 are for validation"):
            LinearPopulation({"samples": 4, "validation": 0.1}).load()


def test_the_noise_has_the_rate_as_variance():
    rate = np.tile([[0.1, -0.4, 0.0]], (200_000, 1))
    noisy = poisson_like(rate, np.random.default_rng(0))
    np.testing.assert_allclose(noisy.mean(0), rate[0], atol=5e-3)
    np.testing.assert_allclose(noisy.var(0), np.abs(rate[0]), rtol=0.02)
