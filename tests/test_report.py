"""Facts about the report: it is self-contained and harmless, and whole although a part fails."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from pydantic import Field

from retinakit import Analysis, Config, UserError
from retinakit.contracts import groups, make_recording, make_split
from retinakit.pipeline.run import FOLDERS
from retinakit.report import column_texts, duration, tabulate, write_report

CELLS = 60
NASTY = "<script>alert('x')</script>"


class ScoreConfig(Config):
    threshold: float = Field(0.5, description="Where a correlation counts as <good>.")
    label: str = Field("", description="Goes into the title.")


class Score(Analysis):
    """Correlation of prediction and response in the test frames."""

    Config = ScoreConfig

    def run(self, model: Any) -> xr.Dataset:
        raise NotImplementedError

    def plot(self, result: xr.DataTree) -> Figure:
        figure = Figure(figsize=(4, 2.5))
        ax = figure.subplots()
        for group in groups(result).values():
            ax.plot(group["correlation"].values.ravel(), ".")
        return figure

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        group = next(iter(groups(result).values()))
        return group["correlation"].isel(filters=0).to_dataframe()


class Broken(Score):
    """Draws nothing."""

    def plot(self, result: xr.DataTree) -> Figure:
        raise ValueError("no axis is left")


class Installed:
    """A registry of the classes above."""

    def __init__(self, **classes: type):
        self.classes = classes

    def load(self, kind: str, name: str) -> type:
        try:
            return self.classes[name.partition(":")[2]]
        except KeyError:
            raise UserError(f"there is no {kind} plugin '{name}'") from None


def task(label: str, status: str = "done", message: str = "", **coords: Any) -> dict[str, Any]:
    return {
        "label": label,
        "key": "0",
        "coords": coords,
        "about": "",
        "seed": 0,
        "config": {},
        "status": status,
        "seconds": 1.5,
        "message": message,
        "traceback": "Traceback: deep inside" if status == "failed" else "",
    }


def step(name: str, kind: str, tasks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    for one in tasks:
        point = "".join(f"/{name}={value}" for name, value in one["coords"].items())
        one["result"] = f"{FOLDERS[kind]}/{name}{point}.nc"
    return {
        "name": name,
        "kind": kind,
        "plugin": f"lab:{more.pop('plugin', name)}",
        "version": "1",
        "summary": "",
        "options": {},
        "sweep": {},
        "references": {},
        "dims": [],
        "files": {},
        "problem": "",
        "tasks": tasks,
        **more,
    }


def write_recording(path: Path) -> None:
    rng = np.random.default_rng(0)
    split = make_split(
        np.ones((300, 6, 8), np.int8), rng.poisson(0.5, (300, 2)), frame_interval=0.02
    )
    repeated = make_split(
        np.ones((50, 6, 8), np.int8), rng.poisson(0.5, (4, 50, 2)), frame_interval=0.02
    )
    recording = make_recording({"train": split, "validation": split, "test": repeated})
    recording.to_netcdf(path, engine="h5netcdf")


def write_models(folder: Path) -> dict[str, str]:
    curves = xr.Dataset(
        {
            "step": ("check", [100.0, 200.0]),
            "train_loss": (("filters", "start", "check"), np.ones((2, 1, 2))),
            "validation_loss": (("filters", "start", "check"), np.ones((2, 1, 2))),
        },
        coords={"filters": [1, 2]},
    )
    state = xr.Dataset({"weight": ("weight_0", np.zeros(1234)), "cells": ("c", np.arange(7))})
    tree = {"parameters": xr.Dataset(), "curves": curves}
    xr.DataTree.from_dict(tree).to_netcdf(folder / "cnn.nc", engine="h5netcdf")
    files = {"models/cnn.nc": "parameters and curves of all fits"}
    (folder / "cnn").mkdir()
    for filters in (1, 2):
        one = xr.DataTree.from_dict({"state": state})
        one.to_netcdf(folder / "cnn" / f"filters={filters}.nc", engine="h5netcdf")
        files[f"models/cnn/filters={filters}.nc"] = "model"
    return files


def write_score(path: Path) -> None:
    values = np.linspace(0.1, 0.9, 2 * CELLS).reshape(2, CELLS)
    result = xr.Dataset(
        {"correlation": (("filters", "cell"), values)},
        coords={"filters": [1, 2], "cell": [f"cell{i}" for i in range(CELLS)]},
        attrs={"sweep": "filters"},
    )
    xr.DataTree.from_dict({"/cnn": result}).to_netcdf(path, engine="h5netcdf")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run as `retinakit.pipeline.run` writes it."""
    for name in ("datasets", "models", "analyses"):
        (tmp_path / name).mkdir()
    write_recording(tmp_path / "datasets" / "cells.nc")
    model_files = write_models(tmp_path / "models")
    for name in ("score", "broken"):
        write_score(tmp_path / "analyses" / f"{name}.nc")
    fits = [task(f"cnn[filters={n}]", filters=n) for n in (1, 2)]
    steps = [
        step("cells", "dataset", [task("cells")], files={"datasets/cells.nc": "recording"}),
        step(
            "cnn",
            "model",
            fits,
            references={"data": "cells"},
            dims=["filters"],
            sweep={"filters": [1, 2]},
            files=model_files,
        ),
        step(
            "broken",
            "analysis",
            [task("broken of cnn")],
            references={"models": ["cnn"]},
            files={"analyses/broken.nc": "result"},
        ),
        step(
            "score",
            "analysis",
            [task("score of cnn")],
            references={"models": ["cnn"]},
            files={"analyses/score.nc": "result"},
            dims=["filters"],
        ),
    ]
    steps[-1]["tasks"][0]["config"] = {"threshold": 0.25, "label": ""}
    steps[-1]["options"] = {"threshold": 0.25}
    save(tmp_path, steps)
    return tmp_path


def save(folder: Path, steps: list[dict[str, Any]], **more: Any) -> None:
    provenance = {
        "name": "two cells",
        "description": "Do two filters suffice?",
        "started": "2026-11-21T02:45:00+00:00",
        "seconds": 192.4,
        "command": ["retina-run", "a file.yaml"],
        "versions": {"python": "3.11"},
        "platform": "Linux",
        "processors": 4,
        "git": None,
        "seed": 0,
        "steps": steps,
        **more,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads((folder / "provenance.json").read_text())["steps"]
    return steps


def draw(folder: Path, registry: Any = None) -> str:
    registry = registry or Installed(score=Score, broken=Broken)
    path = write_report(folder, registry).path
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def section(page: str, name: str) -> str:
    """The part of a page that is about a step."""
    return page.partition(f'id="step-{name}"')[2].partition("</article>")[0]


def test_the_page_requests_nothing_and_runs_nothing(run: Path) -> None:
    page = draw(run)
    elements = Elements(page)
    assert not elements.all("script") and not elements.all("link")
    for _, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,"[:5])
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_figures_are_inline_and_drawn_at_twice_their_size(run: Path) -> None:
    images = Elements(draw(run)).all("img")
    assert len(images) == 2  # the score, and the training curves
    for image in images:
        assert (image["src"] or "").startswith("data:image/png;base64,iVBOR")
    assert 350 < int(images[0]["width"] or 0) <= 410


def test_every_link_within_the_page_has_its_place(run: Path) -> None:
    elements = Elements(draw(run))
    places = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for link in elements.all("a"):
        assert (link["href"] or "").removeprefix("#") in places


def test_names_and_messages_with_html_are_shown_as_text(run: Path) -> None:
    steps = steps_of(run)
    steps[1]["tasks"][0] |= {"status": "failed", "message": NASTY, "traceback": NASTY}
    steps[1]["tasks"][0]["label"] = steps[3]["summary"] = NASTY
    steps[3]["tasks"][0]["config"]["label"] = NASTY
    steps[3]["name"] = NASTY
    save(run, steps, name=NASTY, description=NASTY, git=NASTY, command=[NASTY])
    page = draw(run)
    elements = Elements(page)
    assert not elements.all("script")
    assert NASTY not in page
    assert elements.text.count(NASTY) >= 8


def test_a_plot_that_fails_is_reported_and_the_rest_is_drawn(run: Path) -> None:
    page = draw(run)
    broken = section(page, "broken")
    assert "The figure could not be made (ValueError: no axis is left)" in broken
    assert "Traceback" in broken and "<img" not in broken
    assert "cell59" in broken  # its table
    assert "<img" in section(page, "score")


def test_a_plugin_that_is_gone_is_reported_and_the_rest_is_drawn(run: Path) -> None:
    page = draw(run, Installed(score=Score))
    assert "there is no analysis plugin &#39;lab:broken&#39;" in section(page, "broken")
    assert "<img" in section(page, "score")


def test_a_file_that_cannot_be_read_is_reported_and_the_rest_is_drawn(run: Path) -> None:
    (run / "analyses" / "broken.nc").write_bytes(b"not HDF5")
    page = draw(run)
    assert "OSError" in section(page, "broken")
    assert "cannot be read" in page.partition('id="arrays"')[2]
    assert "<img" in section(page, "score")


def test_failures_stand_at_the_top_with_what_they_took_along(run: Path) -> None:
    steps = steps_of(run)
    for one in steps[1]["tasks"]:
        one |= {"status": "failed", "message": "the fit diverged", "traceback": "deep inside"}
    steps[1]["files"] = {}
    steps[3]["tasks"][0] |= {"status": "skipped", "message": "it needs cnn[filters=1]"}
    steps[3]["files"] = {}
    save(run, steps)
    page = draw(run)
    top = Elements(page.partition("<svg")[0].partition("<main>")[2]).text
    assert "2 failed, 1 skipped" in top
    assert top.count("the fit diverged") == 1  # both fits together
    assert "cnn[filters=1] and 1 more" in re.sub(r"\s+", " ", top)
    assert "deep inside" in top
    assert "it needs cnn[filters=1]" in top
    assert "There is no result" in section(page, "score")


def test_a_run_without_failures_says_so(run: Path) -> None:
    page = draw(run)
    assert "All steps succeeded" in page and 'id="failures"' not in page


def test_warnings_in_results_and_training_curves_stand_at_the_top(run: Path) -> None:
    poor = xr.DataArray(
        [["", ""], ["poor", "poor"]], {"filters": [1, 2], "cell": [3, 5]}, ("filters", "cell")
    )
    results = {"/cnn": xr.Dataset({"correlation": poor != "", "warning": poor})}
    xr.DataTree.from_dict(results).to_netcdf(run / "analyses" / "score.nc", engine="h5netcdf")
    curves = xr.Dataset({"warning": ("filters", ["", "is slow"])}, {"filters": [1, 2]})
    fits = xr.DataTree.from_dict({"curves": curves})
    fits.to_netcdf(run / "models" / "cnn.nc", engine="h5netcdf")
    report = write_report(run, Installed(score=Score, broken=Broken))
    warnings = [
        "cnn (filters 2): is slow",
        "score: cnn (filters 2, cell 3; filters 2, cell 5): poor",
    ]
    assert report.warnings == warnings
    top = report.path.read_text(encoding="utf-8").partition("<svg")[0].partition("<main>")[2]
    text = re.sub(r"\s+", " ", Elements(top).text)
    assert "All steps ran, with 2 warnings" in text and "succeeded" not in text
    assert all(f"{warning}." in text for warning in warnings)


def test_every_cell_is_listed(run: Path) -> None:
    rows = Elements(section(draw(run), "score"))
    assert all(f"cell{i}" in rows.text for i in range(CELLS))
    assert len(rows.all("tr")) >= CELLS + 1


def test_options_come_with_their_descriptions(run: Path) -> None:
    score = section(draw(run), "score")
    assert "Where a correlation counts as &lt;good&gt;." in score
    assert '<tr class="given"><td><code>threshold</code></td><td>0.25' in score


def test_models_are_listed_with_their_number_of_parameters(run: Path) -> None:
    model = section(draw(run), "cnn")
    assert len(re.findall(r">1234<", model)) == 2  # the integers in the state are no parameters
    assert "over filters" in model


def test_splits_are_listed_with_frames_seconds_cells_and_repeats(run: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", section(draw(run), "cells"))
    cells = text.split()
    assert cells[cells.index("train") + 1 :][:4] == ["300", "6", "2", "1"]
    assert cells[cells.index("test") + 1 :][:4] == ["50", "1", "2", "4"]
    assert "6 × 8 checks" in text


def test_every_file_is_listed_with_its_arrays(run: Path) -> None:
    page = draw(run).partition('id="arrays"')[2]
    for one in steps_of(run):
        for path in one["files"]:
            assert path in page
    assert "cnn/correlation" in page and "(filters 2, cell 60)" in page
    assert "stimulus" in page and "(frame 300, y 6, x 8)" in page


def test_the_snippets_open_the_file_they_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elements = Elements(draw(run))
    snippets = [part for part in re.split(r"(?=import )", elements.text) if ".nc" in part]
    monkeypatch.chdir(run)
    for code in (snippets[0], snippets[1]):
        lines = [line for line in code.splitlines() if line.strip()]
        end = next(i for i, line in enumerate(lines) if "tree[" in line or "values =" in line)
        names: dict[str, Any] = {}
        exec("\n".join(lines[: end + 1]), names)
        opened = [v for v in names.values() if isinstance(v, xr.DataTree | h5py.File | np.ndarray)]
        assert opened, code


def test_the_page_is_drawn_from_the_folder_alone(run: Path, tmp_path_factory: Any) -> None:
    first = draw(run)
    moved = run.rename(tmp_path_factory.mktemp("elsewhere") / "run")
    assert draw(moved) == first
    left = {path.name for path in moved.iterdir()}
    assert left == {"provenance.json", "report.html", "datasets", "models", "analyses"}


def test_drawing_leaves_no_figure_open_and_the_users_style_alone(run: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    class WithPyplot(Score):
        def plot(self, result: xr.DataTree) -> Figure:
            return plt.figure()

    before = dict(mpl.rcParams)
    draw(run, Installed(score=WithPyplot, broken=WithPyplot))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" in sys.modules


def test_missing_numbers_are_a_dash_and_others_are_short() -> None:
    assert column_texts([0.81234, float("nan"), -0.05]) == ["0.812", "–", "-0.050"]
    assert column_texts([12.3456, 1.0]) == ["12.35", "1.00"]
    assert column_texts([600000, 12]) == ["600,000", "12"]
    assert column_texts([3.0, float("nan")]) == ["3", "–"]
    assert column_texts([1e-5, 0.1, 0.0]) == ["1e-05", "0.1", "0"]
    assert column_texts(["a", None, True]) == ["a", "–", "yes"]
    assert column_texts([float("inf"), 1.5]) == ["inf", "1.500"]
    assert column_texts([2000.4, 0.5]) == ["2000", "0.5"]


def test_the_index_of_a_table_is_kept_where_it_says_something() -> None:
    frame = pd.DataFrame({"r": [0.5, 0.25]})
    counted = tabulate(frame)
    assert counted is not None and counted.header == ["r"]
    frame.index = pd.MultiIndex.from_tuples([("ln", 3), ("cnn", 4)], names=["model", "cell"])
    table = tabulate(frame)
    assert table is not None
    assert table.header == ["model", "cell", "r"]
    assert table.rows == [("ln", "3", "0.500"), ("cnn", "4", "0.250")]
    assert table.numeric == [False, True, True]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"),
        (7.25, "7.2 s"),
        (42.3, "42 s"),
        (192.4, "3 min 12 s"),
        (3660, "1 h 1 min"),
        (59.9, "1 min 0 s"),
    ],
)
def test_times_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
