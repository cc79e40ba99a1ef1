"""Sweeps that are lists of points, sizes that differ, and models of several recordings."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from retinakit.pipeline.combine import combine
from retinakit.pipeline.document import read_pipeline
from retinakit.pipeline.graph import build
from retinakit.registry import Registry

DATA = """\
name: p
datasets:
  a: {plugin: hdf5, with: {path: a.h5, response: spikes, frame_rate: 60}}
  b: {plugin: hdf5, with: {path: b.h5, response: spikes, frame_rate: 30}}
"""
NET = "with: {filters: [2], kernels: [3], lags: 2, steps: 20, batch: 100, check_every: 10}"


@pytest.fixture
def recordings(tmp_path):
    random = np.random.default_rng(0)
    for name, frames, cells in (("a", 800, 2), ("b", 500, 3)):
        stimulus = random.choice(np.array([-1, 1], np.int8), (frames, 5, 6))
        rate = np.exp(0.5 * stimulus[:, 2:3, 2 : 2 + cells].sum(1) - 1)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["stimulus"], file["spikes"] = stimulus, random.poisson(rate)


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs" / "p").iterdir()
    return folder


def test_a_list_of_points_is_one_dimension_with_the_options_as_coordinates(
    recordings, command, tmp_path
):
    (tmp_path / "p.yaml").write_text(
        DATA + "models:\n  ols: {plugin: ols, data: a, "
        "sweep: [{lags: 1, crop: 3}, {lags: 2, crop: 5}]}\n"
        "analyses:\n  score: {plugin: score, models: [ols]}\n"
    )
    ended = command("p.yaml")
    assert ended.code == 0, ended.err
    assert "ols[lags=2, crop=5]" in ended.err
    with xr.open_datatree(run_folder(tmp_path) / "analyses" / "score.nc") as scores:
        score = scores["ols"].to_dataset().load()
    assert score["correlation"].dims == ("point", "cell")
    assert score["lags"].dims == score["crop"].dims == ("point",)
    assert score["lags"].values.tolist() == [1, 2]
    assert score["crop"].values.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("sweep", "place", "message"),
    [
        ("[{lags: 1}, {crop: 2}]", "7:48", "give every point the same options"),
        ("[{lags: 1}, {lags: 1}]", "7:48", "already in the list"),
        ("[{lags: 1}, {lags: 1.0}]", "7:48", "already in the list"),
        ("[{lag: 1}]", "7:37", "did you mean 'lags'"),
        ("[{lags: 1}, {lags: none}]", "7:49", "it must be an integer"),
        ("[{}]", "7:28", "the list of points is empty"),
        (
            f"{{lags: [1, 2], seed: {list(range(50_001))}}}",
            "7:28",
            "100002 points",
        ),
    ],
)
def test_a_mistake_in_a_list_of_points_is_found_where_it_stands(
    recordings, command, tmp_path, sweep, place, message
):
    text = DATA + f"models:\n  # points\n  m: {{plugin: ols, data: a, sweep: {sweep}}}\n"
    (tmp_path / "p.yaml").write_text(text)
    ended = command("check", "p.yaml")
    assert ended.code == 2
    assert message in ended.err
    assert f"p.yaml:{place.split(':')[0]}:" in ended.err


def test_a_sweep_of_20_000_points_is_checked_at_once(recordings, tmp_path):
    seeds = ", ".join(map(str, range(2000)))
    (tmp_path / "p.yaml").write_text(
        DATA + "models:\n  m: {plugin: ols, data: a, "
        f"sweep: {{lags: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], seed: [{seeds}]}}}}\n"
    )
    source, document = read_pipeline(tmp_path / "p.yaml")
    begun = time.process_time()
    graph = build(source, document, Registry())
    assert len(graph.tasks) == 20_002
    assert time.process_time() - begun < 10  # 1.2 s here; it was 41


def test_sizes_without_a_coordinate_are_padded():
    results = [((("filters", n),), xr.Dataset({"w": ("unlabelled", np.ones(n))})) for n in (1, 3)]
    combined = combine(results)
    np.testing.assert_array_equal(combined["w"], [[1, np.nan, np.nan], [1, 1, 1]])
    assert "unlabelled" not in combined.coords


class TestSeveralRecordings:
    def test_what_follows_is_run_for_each_and_joined_along_the_cells(
        self, recordings, command, tmp_path
    ):
        (tmp_path / "p.yaml").write_text(
            DATA + f"models:\n  net: {{plugin: what_where, data: [a, b], {NET}}}\n"
            "analyses:\n  score: {plugin: score, models: [net]}\n"
            "  masks: {plugin: masks, models: [net]}\n"
        )
        ended = command("p.yaml")
        assert ended.code == 0, ended.err
        folder = run_folder(tmp_path)
        cells = ["a/0", "a/1", "b/0", "b/1", "b/2"]
        for name in ("score", "masks"):
            with xr.open_datatree(folder / "analyses" / f"{name}.nc") as result:
                assert result["net"]["cell"].values.tolist() == cells
                assert result["net"]["recording"].values.tolist() == [c[0] for c in cells]
        with xr.open_datatree(folder / "models" / "net.nc") as model:
            assert model["parameters/mask"].sizes["cell"] == 5
            assert "cell" not in model["parameters/kernel"].dims
        assert "a/0" in (folder / "report.html").read_text()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("{plugin: ln, data: [a, b]}", "'ln' is fitted to one recording"),
            ("{plugin: what_where, data: [a, a]}", "'a' is already in the list"),
            ("{plugin: what_where, data: [a, c]}", "there is no step 'c'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, recordings, command, tmp_path, data, message):
        (tmp_path / "p.yaml").write_text(DATA + f"models:\n  m: {data}\n")
        ended = command("check", "p.yaml")
        assert ended.code == 2
        assert message in ended.err
        assert "p.yaml:6:" in ended.err
