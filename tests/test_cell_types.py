"""Types, locations and tables of a population's models: right for a model that is right."""

import numpy as np
import pytest
import torch
import xarray as xr

from retinakit.contracts import UserError, coordinates_of
from retinakit.report import rows
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.cell_types import CellTypes
from retinakit_plugins.analyses.masks import Masks
from retinakit_plugins.analyses.readout_table import ReadoutTable
from retinakit_plugins.datasets.linear_population import LinearPopulation
from retinakit_plugins.models.what_where import WhatWhere

OPTIONS = {
    "filters": [2],
    "kernels": [7],
    "normalisation": "none",
    "activation": "identity",
    "output": "identity",
    "loss": "mse",
    "offset": False,
    "bias": False,
}


@pytest.fixture(scope="module")
def population():
    options = {"cells": 20, "types": [0.4, 1.0], "kernel": 7, "height": 16, "width": 14}
    return LinearPopulation(options | {"samples": 20, "test": 5}).load()


@pytest.fixture
def true_model(population):
    """The network that is the population itself, with the types in the other order."""
    truth, model = population["truth"].to_dataset(), WhatWhere(OPTIONS)
    model.field = coordinates_of(population["train"].to_dataset(), 1)
    model.module = model.build(model.field).eval()
    readout = model.module.readout
    with torch.no_grad():
        kernels = torch.from_numpy(truth["kernel"].values[::-1].astype(np.float32))
        model.module.core.kernel[0].copy_(kernels[None, :, None])
        readout.mask.zero_()
        readout.feature_weight.zero_()
        for cell in range(20):
            y, x = (int(truth[f"location_{axis}"][cell]) - 3 for axis in "yx")
            readout.mask[y * readout.places[1] + x, cell] = 1.0
            readout.feature_weight[1 - int(truth["cell_type"][cell]), cell] = 1.0
    test = population["test"].to_dataset()
    np.testing.assert_allclose(model.predict(test), test["rate"], atol=1e-5)
    return model


class TestCellTypes:
    @pytest.mark.parametrize("method", ["largest", "kmeans"])
    def test_the_true_network_has_the_true_types(self, true_model, population, method):
        result = CellTypes({"method": method}).run(true_model, population)
        assert float(result["accuracy"]) == float(result["rand"]) == 1
        assert sorted(result["assigned"].values) == [0, 1]
        confusion = result["confusion"].values
        np.testing.assert_array_equal(np.sort(confusion.ravel()), [0, 0, 10, 10])
        np.testing.assert_allclose(result["selectivity"], 1)
        np.testing.assert_allclose(result["kernel_match"], 1, atol=1e-6)
        for index, name in enumerate(result["assigned"].values):
            np.testing.assert_allclose(
                result["cluster_kernel"][name], population["truth/kernel"][index], atol=1e-6
            )

    def test_one_cell_in_the_wrong_type_is_counted(self, true_model, population):
        with torch.no_grad():
            weights = true_model.module.readout.feature_weight
            weights[:, 0] = weights[:, 0].flip(0)
        result = CellTypes({}).run(true_model, population)
        assert float(result["accuracy"]) == pytest.approx(0.95)
        assert 0.5 < float(result["rand"]) < 1

    def test_a_shifted_kernel_is_the_same(self, true_model, population):
        with torch.no_grad():
            true_model.module.core.kernel[0].copy_(true_model.module.core.kernel[0].roll(1, 3))
        result = CellTypes({}).run(true_model, population)
        assert (result["kernel_match"] > 0.85).all()  # what rolled over the border is lost


class TestMasks:
    def test_the_true_network_looks_at_the_true_locations(self, true_model, population):
        result = Masks({}).run(true_model, population)
        np.testing.assert_allclose(result["error"], 0)
        np.testing.assert_allclose(result["concentration"], 1)
        drawn = result["mask_image"].notnull().any(("map_y", "map_x")).values
        assert sorted(population["truth/cell_type"].values[drawn].tolist()) == [0, 0, 1, 1]

    def test_a_displacement_of_all_cells_of_a_feature_is_taken_off(self, true_model, population):
        mask = true_model.module.readout.mask
        with torch.no_grad():
            mask.copy_(mask.view(10, 8, -1).roll(1, 0).flatten(0, 1))
        result = Masks({}).run(true_model, population)
        wrapped = population["truth/location_y"] == population["truth/location_y"].max()
        np.testing.assert_allclose(result["error"][~wrapped], 1)
        np.testing.assert_allclose(result["aligned_error"][~wrapped], 0)


def test_a_model_without_a_readout_is_refused():
    recording, model = small_recording(frames=100), SmallModel()
    model.fit(recording)
    with pytest.raises(UserError, match="SmallModel has no parameter 'feature_weight'"):
        CellTypes({}).run(model, recording)
    with pytest.raises(UserError, match="SmallModel has no parameter 'mask'"):
        Masks({}).run(model, recording)


class TestReadoutTable:
    def results(self):
        """Scan 1 has two cells and scan 2 three; one model was swept over a penalty."""
        score = np.array(
            [[[0.2, 0.4, np.nan], [0.3, np.nan, 0.6]], [[0.5, 0.5, np.nan], [0, 0, 0]]]
        )
        chosen_by = np.array([[[1, 1, np.nan], [1, 1, 1]], [[2, 2, np.nan], [0, 0, 0]]])
        coords = {"penalty": [0.1, 1.0], "scan": [1, 2], "cell": [0, 1, 2]}
        dims = tuple(coords)
        reason = np.where(np.isnan(score), "the prediction is constant", "")
        reason[:, 0, 2] = "the cell was not recorded"
        swept = xr.Dataset(
            {
                "correlation": (dims, score),
                "likelihood": (dims, chosen_by),
                "reason": (dims, reason),
            },
            coords,
            {"sweep": "penalty,scan"},
        )
        plain = swept.isel(penalty=0, drop=True).assign_attrs(sweep="scan")
        return {"score": xr.DataTree.from_dict({"/swept": swept, "/plain": plain})}

    def test_validation_chooses_for_each_recording_and_cells_weigh_the_average(self):
        result = ReadoutTable({"best_by": "likelihood"}).run(self.results())
        assert result["row"].values.tolist() == ["swept", "plain"]
        # In scan 1 the second penalty is the best; in scan 2 the first, with a constant cell.
        np.testing.assert_allclose(result["value"], [[0.5, 0.3], [0.3, 0.3]])
        np.testing.assert_array_equal(result["cells"], [[2, 3], [2, 3]])
        np.testing.assert_allclose(result["average"], [(2 * 0.5 + 3 * 0.3) / 5, 0.3])

    def test_the_smallest_loss_may_choose(self):
        options = {"best_by": "likelihood", "largest": False}
        result = ReadoutTable(options).run(self.results())
        np.testing.assert_allclose(result["value"].sel(row="swept"), [0.3, 0.0])

    def test_an_unknown_score_is_named(self):
        with pytest.raises(UserError, match="have no variable 'fevv'; choose another score"):
            ReadoutTable({"score": "fevv"}).run(self.results())


def test_rows_of_a_table_are_the_points_of_a_sweep():
    numbers = xr.Dataset({"a": ("size", [1.0, 2.0])}, {"size": [5, 6]})
    assert rows("m", numbers).to_dict("list") == {"model": ["m"] * 2, "size": [5, 6], "a": [1, 2]}
    assert rows("m", numbers.isel(size=0, drop=True)).to_dict("list") == {"model": ["m"], "a": [1]}
