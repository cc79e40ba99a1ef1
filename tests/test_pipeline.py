"""From a pipeline file to a folder of results: what runs, what is reused, and what is written."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from ruamel.yaml import YAML

import retinakit
from retinakit.pipeline.combine import combine
from retinakit.pipeline.document import read_pipeline
from retinakit.pipeline.graph import Graph, build
from retinakit.pipeline.schema import pipeline_schema
from retinakit.registry import Registry

HOOKS = """
from retinakit.registry import AnalysisSpec, DatasetSpec, ModelSpec, hookimpl

@hookimpl
def retinakit_datasets():
    return [DatasetSpec(name="lab_cells", target="lab_plugins:Cells", summary="Cells.")]

@hookimpl
def retinakit_models():
    return [ModelSpec(name="lab_model", target="lab_plugins:Linear", summary="A model.")]

@hookimpl
def retinakit_analyses():
    names = {"lab_rate": "Rate", "lab_models": "Models", "lab_recordings": "Recordings",
             "lab_results": "Results", "lab_clock": "Clock"}
    return [AnalysisSpec(name=n, target=f"lab_plugins:{c}", summary=c) for n, c in names.items()]
"""

PLUGINS = '''
"""Plugins that run in milliseconds, and one that explodes."""
import time
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from pydantic import Field
from retinakit import Analysis, Config, Dataset
from retinakit.testing import SmallModel, small_recording

class CellsConfig(Config):
    frames: int = Field(300, description="Frames.")
    cells: int = Field(1, description="Cells.")
    note: list[int] | str | None = Field(None, description="Nothing.")

class Cells(Dataset):
    """Cells of the testing kit."""
    Config = CellsConfig
    def load(self):
        return small_recording(frames=self.config.frames, cells=self.config.cells, seed=self.seed)

class LinearConfig(Config):
    explode: bool = Field(False, description="Raise in the fit.")
    filters: int = Field(2, description="Length of the parameter `bank`.")
    gain: float = Field(1.0, description="Of the parameter `bank`.")

class Linear(SmallModel):
    """A filter, and a bank of as many numbers as one asks for."""
    Config = LinearConfig
    def fit(self, recording, *, checkpoint=None, progress=None):
        if self.config.explode:
            raise ValueError("the tube is broken")
        return super().fit(recording)
    def parameters(self):
        c = self.config
        bank = c.gain * np.arange(c.filters) + self.seed
        return self.weights.assign(bank=("unit", bank)).assign_coords(unit=range(c.filters))

class Drawn(Analysis):
    """Draws nothing."""
    def plot(self, result):
        return Figure(figsize=(1, 1))

class Rate(Drawn):
    """The mean rate that a model predicts."""
    def run(self, model, data):
        return xr.Dataset({"rate": model.predict(data["test"]).mean("frame")})

class Clock(Drawn):
    """What no option says."""
    def run(self, model):
        return xr.Dataset({"now": time.time_ns()})

class Models(Drawn):
    """Who is in the family."""
    def run(self, models):
        members = [f"{m.name}{dict(m.coords)}" for m in models]
        sums = [float(m.model.parameters()["bank"].sum()) for m in models]
        frames = [m.data["train"].sizes["frame"] for m in models]
        return xr.Dataset({"member": ("i", members), "sum": ("i", sums), "frames": ("i", frames)})

class Recordings(Drawn):
    """Who is in the family."""
    def run(self, recordings):
        members = [f"{r.name}{dict(r.coords)}" for r in recordings]
        frames = [r.data["train"].sizes["frame"] for r in recordings]
        return xr.Dataset({"member": ("i", members), "frames": ("i", frames)})

class Results(Drawn):
    """What other analyses found."""
    def run(self, results):
        found = [(step, tree[g]) for step, tree in results.items() for g in tree.children]
        groups = [f"{step}/{group.name}{dict(group.sizes)}" for step, group in found]
        return xr.Dataset({"group": ("i", groups)})
'''

LAB = """
datasets:
  cells: {plugin: lab_cells}
models:
  line: {plugin: lab_model, data: cells}
analyses:
  rate: {plugin: lab_rate, models: [line]}
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third-party distribution, as pip would leave it in a folder."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lab_hooks.py").write_text(HOOKS)
    (folder / "lab_plugins.py").write_text(PLUGINS)
    info = folder / "retinakit_lab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: retinakit-lab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retinakit]\nlab = lab_hooks\n")
    return folder


class Lab:
    """A folder in which pipelines are run."""

    def __init__(self, folder: Path, command: Callable[..., Any]):
        self.folder, self.command = folder, command
        self.text = ""

    def run(self, text: str, *args: str | Path, code: int = 0) -> Path:
        """Runs a pipeline; returns the folder of the run."""
        (self.folder / "p.yaml").write_text(text.lstrip())
        ended = self.command("p.yaml", *args)
        assert ended.code == code, ended.err
        self.err = ended.err
        return (self.folder / ended.out.split()[1]).parent

    def graph(self, text: str) -> Graph:
        (self.folder / "p.yaml").write_text(text.lstrip())
        return build(*read_pipeline(self.folder / "p.yaml"), Registry())


@pytest.fixture
def bench(
    lab: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Lab:
    monkeypatch.syspath_prepend(str(lab))
    return Lab(tmp_path, command)


def provenance(run: Path) -> Any:
    return json.loads((run / "provenance.json").read_text())


def tasks(run: Path) -> dict[str, dict[str, Any]]:
    """The tasks of a run by their labels."""
    return {task["label"]: task for step in provenance(run)["steps"] for task in step["tasks"]}


def statuses(run: Path) -> dict[str, str]:
    return {label: task["status"] for label, task in tasks(run).items()}


def keys(graph: Graph) -> dict[str, str]:
    return {task.label: key for key, task in graph.tasks.items()}


def result(run: Path, name: str) -> xr.DataTree:
    with xr.open_datatree(run / "analyses" / f"{name}.nc", engine="h5netcdf") as tree:
        return tree.load()


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything in a folder, with sizes and times."""
    found = sorted(folder.rglob("*"))
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


# What fails, and what does not.


def test_a_step_that_raises_stops_only_what_needs_it(bench: Lab) -> None:
    run = bench.run(
        """
datasets:
  cells: {plugin: lab_cells}
models:
  bad: {plugin: lab_model, data: cells, with: {explode: true}}
  good: {plugin: lab_model, data: cells}
analyses:
  rate: {plugin: lab_rate, models: [bad, good]}
""",
        code=1,
    )
    assert statuses(run) == {
        "cells": "done",
        "bad": "failed",
        "good": "done",
        "rate of bad": "skipped",
        "rate of good": "done",
    }
    assert tasks(run)["bad"]["message"] == "ValueError: the tube is broken"
    assert "lab_plugins.py" in tasks(run)["bad"]["traceback"]
    assert tasks(run)["rate of bad"]["message"] == "it needs bad"
    assert list(result(run, "rate").children) == ["good"]
    page = (run / "report.html").read_text()
    assert "ValueError: the tube is broken" in page
    assert "2 of 5 tasks have no result; the report gives the reasons" in bench.err


def test_a_point_of_a_sweep_that_raises_leaves_the_others(bench: Lab) -> None:
    text = LAB.replace("data: cells}", "data: cells, sweep: {explode: [false, true]}}")
    run = bench.run(text, code=1)
    assert result(run, "rate")["line"].sizes["explode"] == 1
    assert result(run, "rate")["line"]["explode"].values.tolist() == [False]
    assert statuses(run)["line[explode=True]"] == "failed"


def test_what_failed_is_tried_again_by_the_next_run(bench: Lab) -> None:
    text = LAB.replace("data: cells}", "data: cells, with: {explode: true}}")
    bench.run(text, code=1)
    second = bench.run(text, code=1)
    assert (statuses(second)["cells"], statuses(second)["line"]) == ("stored", "failed")


# Sweeps.


def test_two_sweeps_are_two_dimensions_with_the_values_as_coordinates(bench: Lab) -> None:
    sweep = "data: cells, sweep: {gain: [0.5, 2.0, 3.0], seed: [7, 8]}}"
    run = bench.run(LAB.replace("data: cells}", sweep))
    rate = result(run, "rate")["line"]["rate"]
    assert rate.dims == ("gain", "seed", "cell")
    assert rate["gain"].values.tolist() == [0.5, 2.0, 3.0]
    assert rate["seed"].values.tolist() == [7, 8]
    assert result(run, "rate")["line"].attrs["sweep"] == "gain,seed"
    with xr.open_dataset(run / "models/line.nc", group="parameters", engine="h5netcdf") as fits:
        bank = fits["bank"].sel(gain=2.0, seed=8).values.tolist()
    assert bank == [8.0, 10.0]


def test_sizes_that_differ_within_a_sweep_are_filled_with_nan(bench: Lab) -> None:
    run = bench.run(LAB.replace("data: cells}", "data: cells, sweep: {filters: [1, 3]}}"))
    with xr.open_dataset(run / "models/line.nc", group="parameters", engine="h5netcdf") as fits:
        bank = fits["bank"].transpose("filters", "unit").values
    np.testing.assert_array_equal(bank, [[0, np.nan, np.nan], [0, 1, 2]])


def test_whole_numbers_among_what_is_filled_are_still_nan_on_disk(tmp_path: Path) -> None:
    points = []
    for size in (1, 3):
        numbers = xr.Dataset({"n": ("unit", np.arange(size))}, {"unit": np.arange(size)})
        numbers.to_netcdf(tmp_path / f"{size}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{size}.nc", engine="h5netcdf") as read:
            points.append(((("size", size),), read.load()))
    combine(points).to_netcdf(tmp_path / "all.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "all.nc", engine="h5netcdf") as read:
        np.testing.assert_array_equal(read["n"], [[0, np.nan, np.nan], [0, 1, 2]])


def test_a_sweep_over_cells_is_joined_along_the_dimension_that_is_there(bench: Lab) -> None:
    run = bench.run(
        """
datasets:
  cells: {plugin: lab_cells, with: {cells: 3}}
  one: {plugin: temporal_collapse, data: cells, with: {lags: 5}, sweep: {cell: [0, 2]}}
models:
  line: {plugin: lab_model, data: one}
analyses:
  rate: {plugin: lab_rate, models: [line]}
"""
    )
    rate = result(run, "rate")["line"]["rate"]
    assert rate.dims == ("cell",)
    assert rate["cell"].values.tolist() == [0, 2]
    assert rate[0] != rate[1]


def test_the_sweep_of_a_dataset_reaches_its_models_and_analyses(bench: Lab) -> None:
    text = LAB.replace("plugin: lab_cells}", "plugin: lab_cells, sweep: {frames: [200, 400]}}")
    run = bench.run(text.replace("data: cells}", "data: cells, sweep: {gain: [1.0, 2.0]}}"))
    assert result(run, "rate")["line"]["rate"].dims == ("frames", "gain", "cell")
    assert "line[frames=400, gain=2.0]" in statuses(run)
    assert len(list((run / "datasets/cells").glob("*.nc"))) == 2
    assert len(list((run / "models/line").glob("*.nc"))) == 4


def test_a_sweep_over_lists_and_text_has_them_as_labels(bench: Lab) -> None:
    run = bench.run(LAB.replace("lab_cells}", "lab_cells, sweep: {note: [[0], [0, 1], a, null]}}"))
    labels = result(run, "rate")["line"]["note"].values
    assert labels.tolist() == ["[0]", "[0, 1]", "a", "null"]


def test_a_sweep_over_what_the_input_is_swept_over_is_refused(bench: Lab) -> None:
    text = LAB.replace("plugin: lab_cells}", "plugin: lab_cells, sweep: {seed: [0, 1]}}")
    text = text.replace("data: cells}", "data: cells, sweep: {seed: [0, 1]}}")
    with pytest.raises(retinakit.UserError) as raised:
        bench.graph(text)
    place = f"{bench.folder}/p.yaml:4:50: models.line.sweep.seed: "
    assert str(raised.value) == place + "the inputs of 'line' are already swept over 'seed'"


# Families.


def test_an_analysis_of_a_family_is_given_all_of_it_at_once(bench: Lab) -> None:
    run = bench.run(
        """
datasets:
  short: {plugin: lab_cells, with: {frames: 200}}
  long: {plugin: lab_cells, with: {frames: 400}}
models:
  few: {plugin: lab_model, data: short, sweep: {gain: [1.0, 2.0]}}
  many: {plugin: lab_model, data: long, with: {filters: 4}}
analyses:
  models: {plugin: lab_models, models: [few, many]}
  recordings: {plugin: lab_recordings, data: [short, long]}
  rate: {plugin: lab_rate, models: [few, many]}
  results: {plugin: lab_results, results: [rate]}
"""
    )
    models = result(run, "models")
    members = ["few{'gain': 1.0}", "few{'gain': 2.0}", "many{}"]
    assert models["member"].values.tolist() == members
    assert models["sum"].values.tolist() == [1.0, 2.0, 6.0]
    assert models["frames"].values.tolist() == [200, 200, 400]
    recordings = result(run, "recordings")
    assert recordings["member"].values.tolist() == ["short{}", "long{}"]
    assert recordings["frames"].values.tolist() == [200, 400]
    groups = ["rate/few{'gain': 2, 'cell': 1}", "rate/many{'cell': 1}"]
    assert result(run, "results")["group"].values.tolist() == groups


# What is run again.


def test_a_second_run_computes_nothing_and_finds_the_same(bench: Lab) -> None:
    first = bench.run(LAB)
    assert set(statuses(first).values()) == {"done"}
    second = bench.run(LAB)
    assert second != first
    assert set(statuses(second).values()) == {"stored"}
    assert bench.err.count("already there") == 3
    xr.testing.assert_identical(result(first, "rate"), result(second, "rate"))


def test_force_computes_the_named_step_again_and_what_follows_from_it(bench: Lab) -> None:
    bench.run(LAB)
    again = bench.run(LAB, "--force", "line")
    assert statuses(again) == {"cells": "stored", "line": "done", "rate of line": "done"}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("plugin: lab_cells", "plugin: lab_cells, with: {frames: 240}", {"cells", "line", "rate"}),
        ("data: cells", "data: cells, with: {gain: 2.0}", {"line", "rate"}),
        ("models: [line]", "models: [line], seed: 5", {"rate"}),
        ("datasets:", "seed: 5\ndatasets:", {"cells", "line", "rate"}),
        ("datasets:", "name: other\ndescription: words\ndatasets:", set()),
        ("data: cells", "data: cells, with: {gain: 1.0}", set()),
    ],
)
def test_a_change_runs_again_only_what_depends_on_it(
    bench: Lab, old: str, new: str, changed: set[str]
) -> None:
    before, after = keys(bench.graph(LAB)), keys(bench.graph(LAB.replace(old, new)))
    assert {label.split()[0] for label in before if before[label] != after[label]} == changed


def test_forced_points_of_a_sweep_are_joined_anew(bench: Lab) -> None:
    text = LAB.replace("data: cells}", "data: cells, sweep: {filters: [2, 3]}}")
    text += "  clock: {plugin: lab_clock, models: [line]}\n"
    first = result(bench.run(text), "clock")["line"]["now"].values
    again = result(bench.run(text), "clock")["line"]["now"].values
    forced = result(bench.run(text, "--force", "clock"), "clock")["line"]["now"].values
    assert (first == again).all() and (forced > first).all()


def test_another_version_of_a_plugin_is_another_result(bench: Lab, lab: Path) -> None:
    before = keys(bench.graph(LAB))
    metadata = lab / "retinakit_lab-1.0.dist-info" / "METADATA"
    genuine = metadata.read_text()
    metadata.write_text(genuine.replace("Version: 1.0", "Version: 1.1"))
    try:
        after = keys(bench.graph(LAB))
    finally:
        metadata.write_text(genuine)
    assert all(before[label] != after[label] for label in before)


def arrays(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["stimulus"] = (2 * random.integers(0, 2, (400, 6, 6)) - 1).astype(np.int8)
        file["response"] = random.poisson(1.0, (400, 2))


FILE = """
datasets:
  mine: {plugin: hdf5, with: {path: data/mine.h5}}
analyses:
  sta: {plugin: sta, data: mine, with: {lags: 3}}
"""


def test_changed_contents_of_an_input_file_are_noticed(bench: Lab) -> None:
    (bench.folder / "data").mkdir()
    arrays(bench.folder / "data/mine.h5", seed=0)
    first = bench.run(FILE)
    arrays(bench.folder / "data/mine.h5", seed=1)
    second = bench.run(FILE)
    assert statuses(second) == {"mine": "done", "sta of mine": "done"}
    assert not result(first, "sta")["mine"]["sta"].equals(result(second, "sta")["mine"]["sta"])
    arrays(bench.folder / "data/mine.h5", seed=0)
    assert set(statuses(bench.run(FILE)).values()) == {"stored"}


def test_results_belong_to_contents_and_not_to_places(
    bench: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.folder / "data").mkdir()
    arrays(bench.folder / "data/mine.h5", seed=0)
    here = keys(bench.graph(FILE))
    (bench.folder / "elsewhere").mkdir()
    monkeypatch.chdir(bench.folder / "elsewhere")
    assert keys(bench.graph(FILE)) == here
    moved = bench.folder / "moved"
    shutil.copytree(bench.folder / "data", moved / "data")
    (moved / "p.yaml").write_text(FILE)
    assert keys(build(*read_pipeline(moved / "p.yaml"), Registry())) == here


@pytest.mark.parametrize("damage", ["result", "meta"])
def test_a_damaged_result_is_computed_again_with_a_warning(
    bench: Lab, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = bench.run(LAB)
    key = tasks(first)["line"]["key"]
    stored = bench.folder / "runs/store" / key[:2] / key
    file = stored / ("result.nc" if damage == "result" else "meta.json")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "retinakit"):
        second = bench.run(LAB)
    assert statuses(second) == {"cells": "stored", "line": "done", "rate of line": "stored"}
    assert f"{key} does not verify; it is computed again" in caplog.text


# What is written.


def test_the_resolved_pipeline_says_everything_and_runs_to_the_same_results(bench: Lab) -> None:
    (bench.folder / "data").mkdir()
    arrays(bench.folder / "data/mine.h5", seed=0)
    text = LAB.replace("data: cells}", "data: cells, sweep: {gain: [1.0, 2.0]}, seed: 4}")
    mine = "  mine: {plugin: hdf5, with: {path: data/mine.h5}}"
    text = text.replace("datasets:", f"seed: 3\ndatasets:\n{mine}")
    run = bench.run(text)
    resolved = YAML(typ="safe").load(run / "resolved.yaml")
    assert resolved["models"]["line"]["with"] == {"explode": False, "filters": 2}
    assert resolved["models"]["line"]["plugin"] == "retinakit-lab:lab_model"
    again = build(*read_pipeline(run / "resolved.yaml"), Registry())
    assert keys(again) == {label: task["key"] for label, task in tasks(run).items()}


def test_provenance_says_what_made_each_result(bench: Lab) -> None:
    before = provenance(bench.run(LAB.replace("datasets:", "seed: 3\ndatasets:")))
    assert before["versions"]["retinakit"] == version("retinakit")
    assert before["versions"]["torch"] == version("torch")
    assert before["seed"] == 3
    assert before["command"] == ["retina-run", "p.yaml"]
    assert before["seconds"] > 0 and before["started"][:2] == "20"
    assert "git" in before and "platform" in before
    (step,) = (s for s in before["steps"] if s["name"] == "line")
    assert (step["plugin"], step["version"]) == ("retinakit-lab:lab_model", "1.0")
    assert step["references"] == {"data": "cells"}
    (task,) = step["tasks"]
    assert task["config"] == {"explode": False, "filters": 2, "gain": 1.0}
    assert (task["seed"], task["status"], task["seconds"] > 0) == (3, "done", True)


def test_provenance_names_the_input_files_by_their_contents(bench: Lab) -> None:
    (bench.folder / "data").mkdir()
    arrays(bench.folder / "data/mine.h5", seed=0)
    (task,) = provenance(bench.run(FILE))["steps"][0]["tasks"]
    ((name, digest),) = task["files"]
    assert name == "mine.h5" and len(digest) == 32


def test_the_log_is_a_line_of_json_for_each_event(bench: Lab) -> None:
    run = bench.run(LAB)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["run", *["started", "ended"] * 3, "finished"]
    assert [e["label"] for e in events if e["event"] == "ended"] == [
        "cells",
        "line",
        "rate of line",
    ]
    assert (events[0]["tasks"], events[-1]["failed"]) == (3, 0)
    assert events == sorted(events, key=lambda event: event["time"])


def test_every_file_of_a_run_opens_in_xarray_and_in_h5py(bench: Lab) -> None:
    run = bench.run(LAB.replace("data: cells}", "data: cells, sweep: {gain: [1.0, 2.0]}}"))
    files = list(run.rglob("*.nc"))
    assert sorted(str(file.relative_to(run)) for file in files) == [
        "analyses/rate.nc",
        "datasets/cells.nc",
        "models/line.nc",
        "models/line/gain=1.0.nc",
        "models/line/gain=2.0.nc",
    ]
    for path in files:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            assert any(node.data_vars for node in tree.subtree)
        with h5py.File(path) as file:
            found: list[str] = []
            file.visititems(lambda name, item, found=found: found.append(name))
            assert found


def test_a_saved_model_predicts_as_it_did_in_the_run(bench: Lab) -> None:
    run = bench.run(LAB)
    model = retinakit.load_model(run / "models/line.nc")
    with xr.open_datatree(run / "datasets/cells.nc", engine="h5netcdf") as recording:
        rate = model.predict(recording["test"]).mean("frame")
    np.testing.assert_array_equal(rate, result(run, "rate")["line"]["rate"])


def test_a_report_is_drawn_again_from_the_folder_alone(bench: Lab) -> None:
    run = bench.run(LAB)
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    shutil.rmtree(bench.folder / "runs/store")
    ended = bench.command("report", run)
    assert (ended.code, ended.out) == (0, f"report: {run}/report.html\n")
    assert (run / "report.html").read_text() == page


def test_a_file_of_a_run_cannot_be_changed_by_mistake(bench: Lab) -> None:
    run = bench.run(LAB)
    assert (run / "models/line.nc").stat().st_mode & 0o222 == 0


# Commands that only look.


def test_a_dry_run_shows_what_is_stored_and_writes_nothing(bench: Lab) -> None:
    (bench.folder / "p.yaml").write_text(LAB)
    ended = bench.command("p.yaml", "--dry-run")
    lines = ["to do    dataset  cells", "to do    model    line  ← cells"]
    assert ended.out.splitlines() == [*lines, "to do    analysis rate of line  ← line, cells"]
    assert not (bench.folder / "runs").exists()
    bench.run(LAB)
    text = LAB.replace("models: [line]", "models: [line], seed: 1")
    (bench.folder / "p.yaml").write_text(text)
    before = contents(bench.folder)
    ended = bench.command("p.yaml", "--dry-run")
    assert [line.split("  ")[0].strip() for line in ended.out.splitlines()] == [
        "stored",
        "stored",
        "to do",
    ]
    assert contents(bench.folder) == before


def test_check_counts_the_tasks_and_writes_nothing(bench: Lab) -> None:
    text = LAB.replace("data: cells}", "data: cells, sweep: {gain: [1.0, 2.0]}}")
    (bench.folder / "p.yaml").write_text(text)
    ended = bench.command("check", "p.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "p.yaml: 3 steps, 5 tasks, no mistake found\n"
    assert [p.name for p in bench.folder.iterdir()] == ["p.yaml"]


# Profiles.

PROFILES = (
    LAB.replace("models: [line]}", "models: [line]}\n")
    + """
profiles:
  quick:
    datasets.cells.with.frames: 240
    models.line.sweep.gain: [1.0, 2.0]
    seed: 4
"""
)


def test_a_profile_is_the_pipeline_with_its_values(bench: Lab) -> None:
    run = bench.run(PROFILES, "--profile", "quick")
    changed = LAB.replace("lab_cells}", "lab_cells, with: {frames: 240}}").replace(
        "data: cells}", "data: cells, sweep: {gain: [1.0, 2.0]}}"
    )
    by_hand = bench.run(changed.replace("datasets:", "seed: 4\ndatasets:"))
    assert {label: task["key"] for label, task in tasks(run).items()} == {
        label: task["key"] for label, task in tasks(by_hand).items()
    }
    assert run.parent.name == "pipeline-quick"
    assert provenance(run)["name"] == "pipeline-quick"
    assert "--profile quick" in (run / "report.html").read_text()
    again = build(*read_pipeline(run / "resolved.yaml"), Registry())
    assert keys(again) == {label: task["key"] for label, task in tasks(run).items()}


def test_without_its_profile_a_pipeline_is_as_it_stands(bench: Lab) -> None:
    assert keys(bench.graph(PROFILES)) == keys(bench.graph(LAB))


def test_a_profile_may_set_a_whole_step(bench: Lab) -> None:
    text = PROFILES.replace("datasets.cells.with.frames: 240", "datasets.cells.with: {cells: 2}")
    (bench.folder / "p.yaml").write_text(text.lstrip())
    graph = build(*read_pipeline(bench.folder / "p.yaml", "quick"), Registry())
    (cells,) = (task for task in graph.tasks.values() if task.kind == "dataset")
    assert json.loads(cells.config) == {"frames": 300, "cells": 2, "note": None}


def test_a_profile_changes_one_of_two_steps_that_share_their_options(bench: Lab) -> None:
    text = """
datasets:
  cells: {plugin: lab_cells, with: &sizes {frames: 200, cells: 2}}
  others: {plugin: lab_cells, with: *sizes}
profiles:
  quick: {datasets.cells.with.frames: 100}
"""
    (bench.folder / "p.yaml").write_text(text.lstrip())
    graph = build(*read_pipeline(bench.folder / "p.yaml", "quick"), Registry())
    frames = {t.step: json.loads(t.config)["frames"] for t in graph.tasks.values()}
    assert frames == {"cells": 100, "others": 200}


def test_check_checks_every_profile_or_the_one_that_is_named(bench: Lab) -> None:
    (bench.folder / "p.yaml").write_text(PROFILES)
    assert bench.command("check", "p.yaml").out.splitlines() == [
        "p.yaml: 3 steps, 3 tasks, no mistake found",
        "p.yaml --profile quick: 3 steps, 5 tasks, no mistake found",
    ]
    one = bench.command("check", "p.yaml", "--profile", "quick").out
    assert one == "p.yaml --profile quick: 3 steps, 5 tasks, no mistake found\n"
    (bench.folder / "p.yaml").write_text(PROFILES.replace("with.frames", "with.fraems"))
    ended = bench.command("check", "p.yaml")
    assert (ended.code, ended.err) == (
        2,
        "retina-run: p.yaml:12:5: datasets.cells.with.fraems: there is no such option; "
        "did you mean 'frames'?\n",
    )


# The JSON Schema.


def accepts(schema: Any, value: Any, root: Any) -> bool:
    """Whether a value fits a JSON Schema, as far as the schema of a pipeline goes."""
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        if not accepts(target, value, root):
            return False
    types = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    types |= {"integer": int, "number": (int, float)}
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "pattern" in schema and schema["pattern"] not in value:
        return False
    if "anyOf" in schema and not any(accepts(s, value, root) for s in schema["anyOf"]):
        return False
    if not all(accepts(s, value, root) for s in schema.get("allOf", [])):
        return False
    if "if" in schema and accepts(schema["if"], value, root):
        return accepts(schema["then"], value, root)
    if isinstance(value, dict):
        if not set(schema.get("required", [])) <= set(value):
            return False
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            inner = known.get(key, others)
            if inner is False or (isinstance(inner, dict) and not accepts(inner, item, root)):
                return False
    if isinstance(value, list) and "items" in schema:
        return all(accepts(schema["items"], item, root) for item in value)
    return True


QUICKSTART = """
name: quickstart
datasets:
  cell: {plugin: subunit_rgc, with: {frames: 6000, threshold: 0.0}}
models:
  ln: {plugin: ln, data: cell, with: {lags: 10}, sweep: {rank: [1, 2]}}
analyses:
  score: {plugin: "retinakit:score", models: [ln]}
"""


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [
        ("", "", True),
        ("lags: 10", "lgas: 10", False),
        ("lags: 10", "lags: many", False),
        ("{rank:", "{rnak:", False),
        ("plugin: ln", "plugin: l", False),
        ("models: [ln]", "models: ln", False),
        ("plugin: ln, ", "", False),
        ("name:", "title:", False),
    ],
)
def test_the_schema_accepts_a_pipeline_and_refuses_a_mistake_in_it(
    old: str, new: str, fits: bool
) -> None:
    schema = pipeline_schema(Registry(builtin_only=True))
    document = YAML(typ="safe").load(QUICKSTART.replace(old, new) if old else QUICKSTART)
    assert accepts(schema, document, schema) == fits


def test_the_schema_command_prints_json_with_the_options_of_every_plugin(
    command: Callable[..., Any],
) -> None:
    ended = command("schema", "--no-plugins")
    schema = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    lags = schema["$defs"]["model:ln"]["properties"]["lags"]
    assert (lags["default"], lags["minimum"], lags["type"]) == (20, 1, "integer")
    assert lags["description"] == "Number of frames of history, including the current frame."


# Plugins and the installation.


def test_plugins_are_listed_as_json(bench: Lab) -> None:
    rows = json.loads(bench.command("plugins", "--json").out)
    (row,) = (row for row in rows if row["name"] == "lab_model")
    assert row == {
        "kind": "model",
        "name": "lab_model",
        "distribution": "retinakit-lab",
        "version": "1.0",
        "status": "ok",
        "reason": "",
        "target": "lab_plugins:Linear",
        "summary": "A model.",
    }


def test_the_table_of_plugins_names_what_failed_and_why(
    retina_run: Callable[..., Any], distributions: Any
) -> None:
    done = retina_run("plugins", env=distributions.environment)
    assert done.returncode == 0
    (row,) = (line for line in done.stdout.splitlines() if "retinakit-broken" in line)
    reason = "ModuleNotFoundError: No module named 'a_library_that_is_not_installed'"
    assert "failed" in row and reason in row


def test_listing_plugins_imports_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['retina-run', 'plugins', '--json']\n"
        "from retinakit.cli import app; app(sys.argv[1:], result_action='return_value')\n"
        "heavy = {'torch', 'xarray', 'numba', 'scipy', 'matplotlib', 'h5py', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_check_of_plugins_finds_one_whose_class_cannot_be_imported(
    bench: Lab, lab: Path, tmp_path: Path
) -> None:
    text = (lab / "lab_hooks.py").read_text()
    (lab / "lab_hooks.py").write_text(text.replace("lab_plugins:Cells", "lab_plugins:Gone"))
    try:
        code = "from retinakit.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "plugins", "--json", "--check"],
            env={"PYTHONPATH": str(lab), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        (lab / "lab_hooks.py").write_text(text)
    status = {row["name"]: (row["status"], row["reason"]) for row in json.loads(done.stdout)}
    assert status["lab_model"] == ("ok", "")
    assert status["lab_cells"][0] == "failed"
    assert "module 'lab_plugins' has no attribute 'Gone'" in status["lab_cells"][1]


BLOCKED = """
import sys
sys.modules["retinakit._kernels"] = None  # as where they were not built
"""

STA = """
import numpy as np
from retinakit.spikes import sta
from retinakit.testing import small_recording
from retinakit.doctor import examine
found = sta(small_recording(frames=500)["train"].to_dataset(), 5)["sta"].values
print(dict(examine())["kernels"])
print(found.tobytes().hex())
"""


def test_without_the_compiled_kernels_the_doctor_says_so_and_results_are_the_same() -> None:
    def run(code: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with_them, without = run(STA), run(BLOCKED + STA)
    built = importlib.util.find_spec("retinakit._kernels") is not None
    assert with_them[0].startswith("C++" if built else "not compiled, so slower Numba kernels")
    assert without[0].startswith("not compiled, so slower Numba kernels")
    assert without[1] == with_them[1]


# A third party's distribution.


def test_the_example_distribution_runs_from_a_pipeline_to_a_report(
    retina_run: Callable[..., Any], distributions: Any, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(
        """
name: example
datasets:
  cell:  {plugin: example_cell, with: {frames: 500}}
models:
  ridge: {plugin: example_ridge, data: cell, sweep: {penalty: [1, 10, 100]}}
analyses:
  rates: {plugin: example_rates, models: [ridge]}
"""
    )
    done = retina_run("p.yaml", env=distributions.environment)
    assert done.returncode == 0, done.stderr
    (page,) = tmp_path.glob("runs/example/*/report.html")
    assert result(page.parent, "rates")["ridge"]["predicted"].sizes == {"penalty": 3, "cell": 2}
    versions = {step["name"]: step["version"] for step in provenance(page.parent)["steps"]}
    assert versions == {"cell": "1.2.3", "ridge": "1.2.3", "rates": "1.2.3"}
    assert "example_ridge" in page.read_text()
