"""Transfer: models of some cells on the recordings of others."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import FittedModel, UserError
from retinakit.pipeline.combine import combine
from retinakit_plugins.analyses.transfer import Transfer
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse


class Member:
    """A model and its recording, at hand."""

    def __init__(self, model, recording):
        self._model, self._recording = model, recording

    def model(self):
        return self._model

    def recording(self):
        return self._recording


def family(name, models, recordings, **coords):
    """Members of one step, whose recordings are swept over `cell`."""
    return [
        FittedModel(name, {"cell": cell, **coords}, Member(model, data), {"cell": cell})
        for cell, (model, data) in enumerate(zip(models, recordings, strict=True))
    ]


def spot(y, x, height=2, width=2, side=7):
    kernel = np.zeros((1, 1, side, side))
    kernel[0, 0, y : y + height, x : x + width] = 1.0
    return kernel


@pytest.fixture
def cells(network, recording_of):
    """Three cells that each look at another place, and overlap."""
    models = [
        network(spot(y, x), output_bias=-2.0, output=np.full((1, 2, 2), 0.5))
        for y, x in ((1, 1), (1, 2), (3, 3))
    ]
    return models, [recording_of(model, repeats=5, seed=i) for i, model in enumerate(models)]


def test_a_row_is_a_model_and_a_column_a_recording(cells):
    models, recordings = cells
    result = Transfer({}).run(family("cnn", models, recordings))
    assert result["model_of"].values.tolist() == ["cell 0", "cell 1", "cell 2"]
    for i, model in enumerate(models):
        for j, recording in enumerate(recordings):
            test = recording["test"].to_dataset()
            predicted = model.predict(test).values[:, 0]
            at = result.isel(family=0, model_of=i, data_of=j)
            observed = {
                "correlation_rate": test["rate"].values[:, 0],
                "correlation": test["response"].values.mean(0)[:, 0],
            }
            for name, values in observed.items():
                expected = np.corrcoef(predicted, values)[0, 1]
                assert float(at[name]) == pytest.approx(expected, abs=1e-6)
            np.testing.assert_allclose(at["rate_model"], predicted[:300], rtol=1e-6)
            np.testing.assert_allclose(at["rate_data"], observed["correlation"][:300])


def test_the_right_model_is_perfect_and_best_in_its_row_and_column(cells):
    models, recordings = cells
    result = Transfer({}).run(family("cnn", models, recordings)).isel(family=0)
    matrix = result["correlation_rate"].transpose("model_of", "data_of").values
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-6)
    assert float(result["mean_self"]) == pytest.approx(1)
    off = matrix[~np.eye(3, dtype=bool)]
    assert float(result["mean_transfer"]) == pytest.approx(off.mean())
    assert off.max() < 0.9
    assert int(result["best_of_row"]) == int(result["best_of_column"]) == 3
    ceiling = result["ceiling"].transpose("data_of").values
    np.testing.assert_allclose(
        result["normalised_correlation"].transpose("model_of", "data_of"),
        result["correlation"].transpose("model_of", "data_of") / ceiling,
    )


def test_models_of_the_wrong_cells_are_not_the_best(cells):
    models, recordings = cells
    exchanged = [models[1], models[0], models[2]]
    result = Transfer({}).run(family("cnn", exchanged, recordings)).isel(family=0)
    assert int(result["best_of_row"]) == int(result["best_of_column"]) == 1


def test_without_time_a_model_transfers_to_a_cell_of_the_other_polarity(network):
    """Version I is collapsed with the filter of the cell that was recorded; Version II is not."""
    sizes = {"frames": 20_000, "validation_frames": 200, "test_frames": 2000, "threshold": 0.0}
    options = sizes | {"gain": 5.0}
    full = [SubunitRGC(options | {"polarity": sign}).load() for sign in ("off", "on")]
    collapsed = [TemporalCollapse({}).load(recording) for recording in full]
    true = full[0]["truth"].to_dataset()["subunit_weight"].values[0][:, None, :7, :7]
    output = np.zeros((4, 2, 2))
    output[:, 0, 0] = 1.0
    space = [network(true, output=output, output_bias=-1.0) for _ in full]
    course = [r["truth"].to_dataset()["temporal"].values for r in full]
    time = [network(true * c[:, None, None], output=output, output_bias=-1.0) for c in course]
    result = Transfer({}).run([*family("one", space, collapsed), *family("two", time, full)])
    rate = result["correlation_rate"].transpose("family", "model_of", "data_of").values
    np.testing.assert_allclose(rate[0], rate[0, 0, 0], atol=0.05)
    assert rate[0].min() > 0.9
    assert rate[1].diagonal().min() > 0.9
    assert rate[1, 0, 1] < 0 and rate[1, 1, 0] < 0


def test_a_step_swept_over_more_than_its_recordings_is_several_families(cells):
    models, recordings = cells
    members = [
        *family("cnn", models, recordings, filters=2),
        *family("cnn", models[::-1], recordings, filters=4),
    ]
    result = Transfer({}).run(members)
    assert result["family"].values.tolist() == ["cnn, filters 2", "cnn, filters 4"]
    assert result["best_of_row"].values.tolist() == [3, 1]
    table = Transfer({}).table(xr.DataTree.from_dict({"/": combine([((), result)])}))
    assert table["models"].tolist() == ["cnn, filters 2", "cnn, filters 4"]
    assert table["rows where the own cell is best"].tolist() == [3, 1]


def test_families_of_other_cells_are_put_beside_by_name(cells):
    models, recordings = cells
    first = family("one", models, recordings)
    second = family("two", models, recordings)
    whole = Transfer({}).run([*first, *second])
    part = Transfer({}).run([*first, second[2], second[0]])
    assert part["data_of"].values.tolist() == ["cell 0", "cell 1", "cell 2"]
    beside = part["correlation"].sel(family="two", model_of="cell 2", data_of="cell 0")
    assert float(beside) == float(
        whole["correlation"].sel(family="two", model_of="cell 2", data_of="cell 0")
    )
    assert part["correlation"].sel(family="two", model_of="cell 1").isnull().all()
    assert part["best_of_row"].values.tolist() == [3, 2]


def test_steps_of_one_model_each_are_a_family(cells):
    models, recordings = cells
    members = [
        FittedModel(name, {}, Member(model, recording))
        for name, model, recording in zip("abc", models, recordings, strict=True)
    ]
    result = Transfer({}).run(members)
    assert result["data_of"].values.tolist() == ["a", "b", "c"]
    assert result["best_of_row"].values.tolist() == [3]


def test_the_traces_are_a_window_of_the_test(cells):
    models, recordings = cells
    whole = Transfer({}).run(family("cnn", models, recordings))
    window = Transfer({"start": 40, "frames": 25}).run(family("cnn", models, recordings))
    assert window.sizes["frame"] == 25
    np.testing.assert_array_equal(
        window["rate_model"], whole["rate_model"].isel(frame=slice(40, 65))
    )
    assert float(window["time"][-1]) == pytest.approx(24 / 30)
    xr.testing.assert_equal(window["correlation"], whole["correlation"])


def test_the_scatters_are_the_rows_and_the_columns_of_the_matrix(cells):
    models, recordings = cells
    result = Transfer({}).run(family("cnn", models, recordings))
    figure = Transfer({"traces": 0}).plot(xr.DataTree.from_dict({"/": combine([((), result)])}))
    _, rows, columns = figure.axes[:3]
    matrix = result["correlation_rate"].isel(family=0).transpose("model_of", "data_of").values

    def pairs(axis):
        (dots,) = (line for line in axis.lines if line.get_marker() == "o")
        return {tuple(p) for p in dots.get_xydata().round(6) if np.isfinite(p).all()}

    apart = [(i, j) for i in range(3) for j in range(3) if i != j]
    assert pairs(rows) == {tuple(np.round((matrix[i, i], matrix[i, j]), 6)) for i, j in apart}
    assert pairs(columns) == {tuple(np.round((matrix[j, j], matrix[i, j]), 6)) for i, j in apart}


def test_one_model_is_no_family(cells):
    models, recordings = cells
    with pytest.raises(UserError, match="needs models of two cells or more and has one"):
        Transfer({}).run(family("cnn", models[:1], recordings[:1]))


def test_a_recording_of_several_cells_is_refused(cells):
    models, recordings = cells
    several = recordings[0].map_over_datasets(
        lambda split: split.isel(cell=[0, 0]).assign_coords(cell=[0, 1]) if split.sizes else split
    )
    with pytest.raises(UserError, match="the recording of cell 0 has 2 cells"):
        Transfer({}).run(family("cnn", models[:2], [several, recordings[1]]))


def test_a_field_of_another_size_is_refused(network, recording_of, cells):
    models, recordings = cells
    large = network(spot(1, 1), field=(9, 9))
    with pytest.raises(UserError, match="the stimulus has 8 'y' and the model was fitted with 9"):
        Transfer({}).run(
            family("cnn", [*models[:2], large], [*recordings[:2], recording_of(large)])
        )


PIPELINE = """
datasets:
  cells:
    plugin: subunit_rgc
    with: {frames: 400, validation_frames: 100, test_frames: 100, threshold: 0.0}
    sweep: {seed: [4, 2], polarity: ["on", "off"]}
models:
  ln:
    plugin: ln
    data: cells
    with: {lags: 5, length_factors: [1]}
    sweep: {rank: [1, 2]}
analyses:
  transfer: {plugin: transfer, models: [ln]}
"""


def test_in_a_pipeline_the_recordings_are_told_from_the_options_of_the_model(tmp_path, command):
    (tmp_path / "p.yaml").write_text(PIPELINE)
    ended = command("p.yaml")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("runs/pipeline/*/analyses/transfer.nc")
    result = xr.open_dataset(path, engine="h5netcdf")
    assert result["family"].values.tolist() == ["ln, rank 1", "ln, rank 2"]
    cells = [f"seed {s}, polarity {p}" for s in (4, 2) for p in ("on", "off")]
    assert result["data_of"].values.tolist() == cells
