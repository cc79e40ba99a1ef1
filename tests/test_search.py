"""Searches: what is proposed, what is fitted once, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from ruamel.yaml import YAML

from retinakit.pipeline.document import read_pipeline
from retinakit.pipeline.graph import build
from retinakit.pipeline.schema import pipeline_schema
from retinakit.registry import Registry

HOOKS = """
from retinakit.registry import DatasetSpec, ModelSpec, hookimpl

@hookimpl
def retinakit_datasets():
    return [DatasetSpec(name="cells", target="valley_plugins:Cells", summary="Cells.")]

@hookimpl
def retinakit_models():
    return [ModelSpec(name="valley", target="valley_plugins:Valley", summary="A valley.")]
"""

PLUGINS = '''
"""A model whose validation loss is known: (x - 0.3)^2 + log10(rate / 0.01)^2 + |n - 4|."""
import math
import xarray as xr
from pydantic import Field
from retinakit import Config, Dataset
from retinakit.testing import SmallModel, small_recording

class CellsConfig(Config):
    frames: int = Field(100, description="Frames.")

class Cells(Dataset):
    """Cells of the testing kit."""
    Config = CellsConfig
    def load(self):
        return small_recording(frames=self.config.frames, cells=1, seed=self.seed)

class ValleyConfig(Config):
    x: float = Field(0.0, ge=0, le=1, description="At best 0.3.")
    rate: float = Field(0.01, gt=0, description="At best 0.01.")
    n: int = Field(4, ge=1, description="At best 4.")
    kind: str = Field("a", description="Of no effect.")
    limit: float = Field(2.0, description="A fit with a larger x raises.")

class Valley(SmallModel):
    """A model of a known loss."""
    Config = ValleyConfig
    def fit(self, recording, *, checkpoint=None, progress=None):
        c = self.config
        if c.x > c.limit:
            raise ValueError("x is over the limit")
        super().fit(recording)
        loss = (c.x - 0.3) ** 2 + math.log10(c.rate / 0.01) ** 2 + abs(c.n - 4)
        return xr.Dataset({"validation_loss": ("check", [loss + 1, loss])})
'''

OVER = "x: {low: 0, high: 1}, rate: {low: 1e-4, high: 1, log: true}, n: [2, 4, 8]"
VALLEY = f"""
datasets:
  cells: {{plugin: cells}}
models:
  valley:
    plugin: valley
    data: cells
    search: {{trials: 24, over: {{{OVER}}}}}
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valley")
    (folder / "valley_hooks.py").write_text(HOOKS)
    (folder / "valley_plugins.py").write_text(PLUGINS)
    info = folder / "retinakit_valley-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: retinakit-valley\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retinakit]\nvalley = valley_hooks\n")
    return folder


Run = Callable[..., Any]


@pytest.fixture
def run(
    plugins: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs `retina-run` with a pipeline."""
    monkeypatch.syspath_prepend(str(plugins))

    def run(text: str, *arguments: str, code: int = 0, first: tuple[str, ...] = ()) -> Any:
        (tmp_path / "p.yaml").write_text(text.lstrip())
        ended = command(*first, "p.yaml", *arguments)
        assert ended.code == code, ended.err
        return ended

    return run


def folder_of(ended: Any) -> Path:
    return Path(ended.out.split()[1]).parent


def fits(ended: Any) -> list[dict[str, Any]]:
    steps = json.loads((folder_of(ended) / "provenance.json").read_text())["steps"]
    tasks: list[dict[str, Any]] = steps[-1]["tasks"]
    return tasks


def points(ended: Any) -> Any:
    resolved = YAML(typ="safe").load((folder_of(ended) / "resolved.yaml").read_text())
    return resolved["models"]["valley"]["sweep"]


def test_a_search_comes_closer_to_the_optimum_and_is_a_sweep_over_its_points(run: Run) -> None:
    ended = run(VALLEY)
    path = folder_of(ended) / "models" / "valley.nc"
    with xr.open_dataset(path, group="curves", engine="h5netcdf") as curves:
        loss = curves["validation_loss"].min("check").load()
    assert loss.dims == ("point",)
    assert {"x", "rate", "n"} <= set(loss.coords)
    assert loss.sizes["point"] == 24
    assert loss[8:].min() < 0.3 * loss[:8].min()
    assert loss["rate"].min() >= 1e-4 and loss["rate"].max() <= 1
    assert set(np.unique(loss["n"])) == {2, 4, 8}

    # A second run proposes the same points and fits none of them again.
    again = run(VALLEY)
    assert points(again) == points(ended)
    assert {task["status"] for task in fits(again)} == {"stored"}

    # The file that it resolves to, a sweep over a list of points, has the same fits.
    graph = build(*read_pipeline(folder_of(ended) / "resolved.yaml"), Registry())
    assert [task.key for task in graph.steps[-1].tasks] == [task["key"] for task in fits(ended)]

    # A longer search begins with the same points.
    longer = run(VALLEY.replace("trials: 24", "trials: 32"))
    assert points(longer)[:24] == points(ended)
    assert [task["status"] for task in fits(longer)] == ["stored"] * 24 + ["done"] * 8


def test_an_interrupted_search_goes_on_with_the_same_points(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(VALLEY, "--store", "other")
    import retinakit.pipeline.execute as execute

    fit, left = execute.Workbench._fit, 11

    def interrupted(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(execute.Workbench, "_fit", interrupted)
        run(VALLEY, code=130)
    assert "16 of 24 trials" in run(VALLEY, "--dry-run").out
    resumed = run(VALLEY)
    assert points(resumed) == points(whole)
    assert [task["status"] for task in fits(resumed)] == ["stored"] * 11 + ["done"] * 13


@pytest.mark.slow
def test_a_search_in_parallel_proposes_the_same_points(run: Run) -> None:
    text = VALLEY.replace("trials: 24", "trials: 6, batch: 3")
    assert points(run(text)) == points(run(text, "--store", "other", "--workers", "2"))


def test_a_point_that_fails_does_not_stop_the_search(run: Run) -> None:
    text = VALLEY.replace("    data: cells\n", "    data: cells\n    with: {limit: 0.5}\n")
    ended = run(text, code=1)
    failed = [task for task in fits(ended) if task["status"] == "failed"]
    assert {task["config"]["x"] > 0.5 for task in failed} == {True}
    assert len(fits(ended)) == 24
    assert len(failed) < 24


def test_points_that_are_proposed_twice_are_fitted_once(run: Run) -> None:
    ended = run(VALLEY.replace(OVER, "n: [2, 4, 8]"))
    assert sorted(point["n"] for point in points(ended)) == [2, 4, 8]


def test_forcing_a_search_fits_all_its_points_again(run: Run) -> None:
    text = VALLEY.replace("trials: 24", "trials: 12")
    first = run(text)
    forced = run(text, "--force", "valley")
    assert points(first) == points(forced)
    assert [task["status"] for task in fits(forced)] == ["done"] * 12


def test_check_and_dry_run_say_how_many_trials_there_are(run: Run) -> None:
    assert "(with the first 8 of 24 trials)" in run(VALLEY, first=("check",)).out
    assert "8 of 24 trials are proposed so far" in run(VALLEY, "--dry-run").out


def test_a_loss_that_the_curves_lack_ends_the_search_and_leaves_its_first_points(run: Run) -> None:
    ended = run(VALLEY.replace("trials: 24", "trials: 24, by: valdation_loss"), code=1)
    assert "models.valley.search.by: the training curves have no 'valdation_loss'" in ended.err
    assert "did you mean 'validation_loss'?" in ended.err
    assert len(fits(ended)) == 8


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("x: {low", "y: {low", "7:33: models.valley.search.over.y: valley has no option of that"),
        ("high: 1}", "high: 0}", "search.over.x: low must be less than high (got 0 and 0)"),
        ("low: 1e-4", "low: 0", "over.rate: low must be more than 0 where log is true (got 0)"),
        ("high: 1}", "high: 2}", "search.over.x.high: it must be at most 1.0 (got 2.0)"),
        ("[2, 4, 8]", "[]", "search.over.n: the list of values is empty"),
        ("[2, 4, 8]", "[2, four]", "search.over.n.1: it must be an integer (got 'four')"),
        ("[2, 4, 8]", "{low: 1.5, high: 3}", "search.over.n.low: it must be an integer (got 1.5)"),
        ("n: [2, 4, 8]", "kind: {low: 1, high: 3}", "over.kind: the option is not a number"),
        (OVER, "", "search.over: there is no option to search over"),
        ("trials: 24", "trials: 0", "search.trials: it must be at least 1 (got 0)"),
        ("    data", "    with: {x: 0.5}\n    data", "the option is also given under 'with'"),
        ("    data", "    sweep: {kind: [a, b]}\n    data", "search: the step has a sweep too"),
        ("{plugin: cells}", "{plugin: cells, sweep: {frames: [90, 95]}}", "'cells' is swept"),
    ],
)
def test_a_search_that_is_not_possible_is_refused(
    run: Run, old: str, new: str, sentence: str
) -> None:
    err = run(VALLEY.replace(old, new, 1), first=("check",), code=2).err
    assert err.startswith("retina-run: p.yaml:")
    assert sentence in err


def test_a_search_without_optuna_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    err = run(VALLEY, first=("check",), code=2).err
    assert err.strip().endswith("a search needs optuna; install retinakit[search]")


def test_the_schema_knows_the_options_to_search_over(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(plugins))
    branches = pipeline_schema(Registry())["$defs"]["ModelDocument"]["allOf"]
    valley = next(b for b in branches if "valley" in b["if"]["properties"]["plugin"]["enum"])
    over = valley["then"]["properties"]["search"]["properties"]["over"]
    assert set(over["properties"]) == {"x", "rate", "n", "kind", "limit", "seed"}


def test_a_search_on_training_frames_is_refused(run: Run) -> None:
    ended = run(VALLEY.replace("trials: 24", "trials: 24, by: train_loss"), code=2)
    assert "models.valley.search.by: a search selects by the validation frames" in ended.err
