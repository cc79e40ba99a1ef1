"""Mistakes: each gives one sentence that says where it is, and leaves nothing behind."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit_plugins.models.cnn import CNN

CELL = "plugin: subunit_rgc, with: {frames: 400, validation_frames: 150, test_frames: 150"
SMALL = f"""
datasets:
  cell: {{{CELL}, threshold: 0.0}}}}
models:
  ln: {{plugin: ln, data: cell, with: {{lags: 5, length_factors: [1]}}}}
"""


def left_behind(folder: Path) -> list[str]:
    """What an unfinished run left in a folder: parts of runs, and results that are not whole."""
    left = list(folder.glob("runs/*.partial")) + list(folder.glob("runs/*/*.partial"))
    runs = [run for run in folder.glob("runs/*/*") if run.parent.name != "store"]
    unfinished = list(folder.glob("runs/store/unfinished/*"))
    return [str(path) for path in {*left, *runs, *unfinished} if not is_empty(path)]


def is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@pytest.fixture
def mistake(command: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """The sentence on the one step that fails in a run, which goes on to a report.

    The exit code is 1, or 2 if there is no result at all.
    """

    def run(text: str) -> str:
        (tmp_path / "p.yaml").write_text(text.lstrip())
        ended = command("p.yaml")
        assert ended.code == (2 if ": done in" not in ended.err else 1), ended.err
        assert "report.html" in ended.out
        assert "Traceback" not in ended.err
        (line,) = (line for line in ended.err.splitlines() if ": FAILED: " in line)
        return line.partition(": FAILED: ")[2]

    return run


@pytest.fixture
def refusal(tmp_path: Path, command: Callable[..., Any]) -> Callable[..., str]:
    """Runs a pipeline that is not right; returns the one sentence that says so.

    The sentence comes without `retina-run: `. What ran before the mistake was met may have printed
    a line for each task.
    """

    def run(pipeline: str, *args: str | Path) -> str:
        (tmp_path / "p.yaml").write_text(pipeline.lstrip("\n"), encoding="utf-8")
        ended = command("p.yaml", *args)
        tasks = ("dataset  ", "model    ", "analysis ")
        lines = [line for line in ended.err.splitlines() if not line.startswith(tasks)]
        assert ended.code == 2, ended.err
        assert len(lines) == 1 and lines[0].startswith("retina-run: "), ended.err
        assert ended.out == ""
        assert left_behind(tmp_path) == []
        return lines[0].removeprefix("retina-run: ")

    return run


# The form of the file.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "datasets: {cell: [\n",
            "p.yaml:2:1: not valid YAML: expected the node content, but found '<stream end>'",
        ),
        (
            "datasets:\n\tcell: 1\n",
            "p.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("name: a\x01b\n", "p.yaml:1:8: not valid YAML: there is an unprintable character"),
        ("- a\n- b\n", "p.yaml:1:1: a pipeline is a mapping with datasets, models, analyses"),
        ("", "p.yaml:1:1: a pipeline is a mapping with datasets, models, analyses"),
        ("name: x\n", "p.yaml:1:1: there is nothing to do; add datasets, models and analyses"),
        ("name: a\nname: b\n", "p.yaml:2:1: the key 'name' is given twice"),
        (
            "datasets:\n  cell: {plugin: subunit_rgc}\n  cell: {plugin: hdf5}\n",
            "p.yaml:3:3: the key 'cell' is given twice",
        ),
        ("seed: 1\n1: 2\n", "p.yaml:2:1: a key is text, and 1 is not; put it in quotes"),
        ("? [a]\n: 1\n", "p.yaml:1:3: a key is text, not a list or a mapping"),
        (
            "description: 2001-99-99\n",
            "p.yaml:1:14: 2001-99-99 is a date; put it in quotes if it is text",
        ),
        ('name: "\\ud800"\n', "p.yaml:1:7: there is an unprintable character (U+D800)"),
        (
            'name: "\\UFFFFFFFF"\n',
            "p.yaml:1:10: not valid YAML: Python int too large to convert to C int",
        ),
        ("seed: !!int x\n", "p.yaml:1:7: 'x' cannot be read as integer"),
        ("seed: !lab 3\n", "p.yaml:1:7: the tag !lab is not known here; leave it out"),
        (
            "datasets: {cell: &c {<<: *c}}\n",
            "p.yaml:1:22: << merges a mapping into itself",
        ),
        ("datasets: {<<: 3}\n", "p.yaml:1:12: << merges a mapping, or a list of mappings"),
        ("datasets: *none\n", "p.yaml:1:11: not valid YAML: found undefined alias 'none'"),
        (
            "models: &m {ln: *m}\n",
            "p.yaml:1:9: the alias *m is inside the value that it repeats",
        ),
        ("seed: " + 60 * "[" + "\n", "p.yaml:1:56: not valid YAML: nested more than 50 deep"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused_where_it_goes_wrong(
    refusal: Callable[..., str], text: str, sentence: str
) -> None:
    assert refusal(text) == sentence


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(
    refusal: Callable[..., str],
) -> None:
    rows = ["profiles:", "  r0: {x: &r0 [x, x, x, x, x, x, x, x, x]}"]
    for row in range(1, 10):
        rows.append(f"  r{row}: {{x: &r{row} [{', '.join(9 * [f'*r{row - 1}'])}]}}")
    sentence = refusal("\n".join(rows))
    assert sentence.startswith("p.yaml:")
    assert sentence.endswith(
        "the aliases of this file repeat more than 20,000 values; write the values out"
    )


def test_a_merged_mapping_gives_way_to_what_stands_beside_it(
    refusal: Callable[..., str],
) -> None:
    text = """
datasets:
  a: &a {plugin: subunit_rgc, with: {frames: 400}}
  b: &b {<<: *a, seed: -1}
  c: {seed: 2, <<: [{plugin: hdf5}, *b]}
"""
    assert refusal(text) == "p.yaml:3:18: datasets.b.seed: it must be at least 0 (got -1)"
    assert refusal(text.replace("-1", "1")).startswith(
        "p.yaml:2:38: datasets.c.with.frames: there is no such option"
    )


def test_a_pipeline_file_that_is_not_there_is_named(command: Callable[..., Any]) -> None:
    ended = command("no-such.yaml")
    assert (ended.code, ended.err) == (2, "retina-run: no-such.yaml: there is no such file\n")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    ended = command("p.yaml")
    expected = "retina-run: p.yaml: cannot be read; save it as text in UTF-8\n"
    assert (ended.code, ended.err) == (2, expected)


def test_a_folder_in_place_of_a_file_is_refused(command: Callable[..., Any]) -> None:
    ended = command(".")
    assert (ended.code, ended.err) == (2, "retina-run: .: cannot be read (Is a directory)\n")


# Keys and values.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "modles: {}\n",
            "p.yaml:1:1: modles: there is no such option; did you mean 'models' or 'profiles'?",
        ),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, wiht: {}}\n",
            "p.yaml:2:31: datasets.cell.wiht: there is no such option; did you mean 'with'?",
        ),
        (
            "datasets:\n  cell:\n    plugin: subunit_rgc\n    with:\n      fraems: 600\n",
            "p.yaml:5:7: datasets.cell.with.fraems: there is no such option; "
            "did you mean 'frames' or 'test_frames' or 'preset'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_at_every_level(
    refusal: Callable[..., str], text: str, sentence: str
) -> None:
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: x\n", "p.yaml:1:1: seed: it must be an integer (got 'x')"),
        ("datasets: [cell]\n", "p.yaml:1:1: datasets: it must be a mapping (got ['cell'])"),
        ("datasets:\n  cell:\n", "p.yaml:2:3: datasets.cell: it must be a mapping (got nothing)"),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, with: {frames: many}}\n",
            "p.yaml:2:38: datasets.cell.with.frames: it must be an integer (got 'many')",
        ),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, with: {frames: 10}}\n",
            "p.yaml:2:38: datasets.cell.with.frames: it must be at least 100 (got 10)",
        ),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, with: {spikes: many}}\n",
            "p.yaml:2:38: datasets.cell.with.spikes: it must be 'binary' or 'poisson' (got 'many')",
        ),
        (
            "seed: 4294967296\n",
            "p.yaml:1:1: seed: it must be less than 4294967296 (got 4294967296)",
        ),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, with: {threshold: -.inf}}\n",
            "p.yaml:2:38: datasets.cell.with.threshold: it must be a number that is neither "
            "infinite nor NaN (got -inf)",
        ),
        (
            "datasets:\n  a: {plugin: hdf5, with: {path: ~nobody_here/x.h5}}\n",
            "p.yaml:2:28: datasets.a.with.path: the path cannot be resolved: Could not determine "
            "home directory. (got '~nobody_here/x.h5')",
        ),
        (
            SMALL + "analyses:\n  score: {plugin: score, models: ln}\n",
            "p.yaml:6:26: analyses.score.models: it must be a list (got 'ln'); write [ln]",
        ),
        (
            SMALL + "analyses:\n  sta: {plugin: sta, data: [cell, 3]}\n",
            "p.yaml:6:35: analyses.sta.data.1: it must be text (got 3)",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_it_must_be(
    refusal: Callable[..., str], text: str, sentence: str
) -> None:
    assert refusal(text) == sentence


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "''"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(
    refusal: Callable[..., str], name: str
) -> None:
    sentence = refusal(f"name: {name}\n{SMALL}")
    assert sentence.startswith("p.yaml:1:1: name: it is also the name of a folder: it must")


def test_a_name_that_no_file_can_have_is_refused(refusal: Callable[..., str]) -> None:
    long = 51 * "é"
    assert refusal(f"name: {long}\n{SMALL}") == (
        "p.yaml:1:1: name: the name is longer than 100 bytes"
    )
    assert refusal(f"datasets:\n  {long}: {{plugin: subunit_rgc}}\n") == (
        f"p.yaml:2:3: datasets.{long}: the name is longer than 100 bytes"
    )


# Plugins and references.


def test_an_unknown_plugin_is_refused_with_the_nearest(refusal: Callable[..., str]) -> None:
    assert refusal("datasets:\n  cell: {plugin: subunit_rcg}\n") == (
        "p.yaml:2:10: datasets.cell.plugin: there is no dataset plugin 'subunit_rcg'; "
        "did you mean 'subunit_rgc'?"
    )


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (
            "models:\n  ln: {plugin: ln, data: cel}\n",
            "p.yaml:4:20: models.ln.data: there is no step 'cel'; did you mean 'cell'?",
        ),
        (
            "models:\n  ln: {plugin: ln, data: cell}\n"
            "analyses:\n  score: {plugin: score, models: [ln, l]}\n",
            "p.yaml:6:39: analyses.score.models.1: there is no step 'l'; did you mean 'ln'?",
        ),
        (
            "analyses:\n  score: {plugin: score, models: [cell]}\n",
            "p.yaml:4:35: analyses.score.models.0: 'cell' is a dataset, not a model",
        ),
        (
            "models:\n  ln: {plugin: ln, data: cell}\n"
            "analyses:\n  score: {plugin: score, models: [ln, ln]}\n",
            "p.yaml:6:39: analyses.score.models.1: 'ln' is already in the list",
        ),
        (
            "models:\n  ln: {plugin: ln}\n",
            "p.yaml:4:3: models.ln: 'ln' needs data; add data: and the name of a step",
        ),
        (
            "analyses:\n  sta: {plugin: sta, data: cell, results: [other]}\n"
            "  other: {plugin: sta, data: cell}\n",
            "p.yaml:4:34: analyses.sta.results: 'sta' takes no results; leave it out",
        ),
        (
            "models:\n  cell: {plugin: ln, data: cell}\n",
            "p.yaml:4:3: models.cell: 'cell' is already a dataset; rename one",
        ),
        (
            "models:\n  ln: {data: cell}\n",
            "p.yaml:4:3: models.ln: no plugin is named; add plugin: …",
        ),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(
    refusal: Callable[..., str], steps: str, sentence: str
) -> None:
    assert refusal("datasets:\n  cell: {plugin: subunit_rgc}\n" + steps) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "datasets:\n  a: {plugin: temporal_collapse, data: b}\n"
            "  b: {plugin: temporal_collapse, data: a}\n",
            "p.yaml:2:3: datasets.a: the steps refer in a circle: a → b → a",
        ),
        (
            "analyses:\n  a: {plugin: sta, results: [a]}\n",
            "p.yaml:2:3: analyses.a: the steps refer in a circle: a → a",
        ),
    ],
)
def test_steps_that_refer_in_a_circle_are_refused(
    refusal: Callable[..., str], text: str, sentence: str
) -> None:
    assert refusal(text) == sentence


# Sweeps.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "sweep: {rnak: [1, 2]}",
            "p.yaml:7:13: models.ln.sweep.rnak: ln has no option of that name; "
            "did you mean 'rank'?",
        ),
        ("sweep: {rank: []}", "p.yaml:7:13: models.ln.sweep.rank: the list of values is empty"),
        ("sweep: {rank: 3}", "p.yaml:7:13: models.ln.sweep.rank: it must be a list (got 3)"),
        (
            "sweep: {rank: [1, two]}",
            "p.yaml:7:23: models.ln.sweep.rank.1: it must be an integer (got 'two')",
        ),
        (
            "sweep: {rank: [1, 2, 1]}",
            "p.yaml:7:26: models.ln.sweep.rank.2: the value 1 is already in the list",
        ),
        (
            "sweep: {rank: [1, 1.0]}",
            "p.yaml:7:23: models.ln.sweep.rank.1: the value 1.0 is already in the list",
        ),
        (
            "sweep: {seed: [0, x]}",
            "p.yaml:7:23: models.ln.sweep.seed.1: it must be an integer from 0 to 2^32 - 1 "
            '(got "x")',
        ),
        (
            "with: {rank: 1}\n    sweep: {rank: [1, 2]}",
            "p.yaml:8:13: models.ln.sweep.rank: the option is also given under 'with' "
            "(in the file, a profile or --set); keep one",
        ),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(
    refusal: Callable[..., str], options: str, sentence: str
) -> None:
    text = "datasets:\n  cell: {plugin: subunit_rgc}\nmodels:\n  ln:\n    plugin: ln\n"
    assert refusal(f"{text}    data: cell\n    {options}\n") == sentence


# Profiles.


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "datasets.cel.with.frames: 200",
            "p.yaml:5:11: profiles.quick.datasets.cel.with.frames: there is no step 'cel'; "
            "did you mean 'cell'?",
        ),
        (
            "dataset.cell.with.frames: 200",
            "p.yaml:5:11: profiles.quick.dataset.cell.with.frames: there is no section 'dataset'; "
            "did you mean 'datasets' or 'analyses'?",
        ),
        (
            "datasets.cell.with.frames.train: 200",
            "p.yaml:5:11: profiles.quick.datasets.cell.with.frames.train: "
            "'datasets.cell.with.frames' is not a mapping; set it as a whole",
        ),
        (
            "models.ln.plugin: ln",
            "p.yaml:5:11: profiles.quick.models.ln.plugin: the file has no models; "
            "write them under models:, not in a profile",
        ),
        ("seeds: 3", "p.yaml:5:11: seeds: there is no such option; did you mean 'seed'?"),
        (
            "datasets.cell.with: {frames: many}",
            "p.yaml:5:32: datasets.cell.with.frames: it must be an integer (got 'many')",
        ),
        (
            "datasets.cell.sweep.gain: [1.0, 2.0, 1.0]",
            "p.yaml:5:48: datasets.cell.sweep.gain.2: the value 1.0 is already in the list",
        ),
        ("", "p.yaml:5:3: profiles.quick: it must be a mapping (got nothing)"),
    ],
)
def test_a_mistake_in_a_profile_is_refused_where_it_stands(
    refusal: Callable[..., str], change: str, sentence: str
) -> None:
    value = f" {{{change}}}" if change else ""
    text = "datasets:\n  cell: {plugin: subunit_rgc, with: {frames: 400}}\n\nprofiles:\n"
    assert refusal(f"{text}  quick:{value}\n", "--profile", "quick") == sentence


def test_a_mistake_beside_what_a_profile_sets_is_refused_where_it_stands(
    refusal: Callable[..., str],
) -> None:
    text = "datasets:\n  cell: {plugin: subunit_rgc, with: {frames: 400, gian: 2}}\n"
    text += "profiles: {quick: {datasets.cell.with.frames: 300}}\n"
    assert refusal(text, "--profile", "quick") == (
        "p.yaml:2:51: datasets.cell.with.gian: there is no such option; did you mean 'gain'?"
    )


def test_an_unknown_profile_is_refused_with_the_nearest(refusal: Callable[..., str]) -> None:
    text = SMALL + "profiles:\n  quick: {seed: 1}\n"
    assert refusal(text, "--profile", "quik") == (
        "--profile quik: p.yaml has no such profile; did you mean 'quick'?"
    )
    assert refusal(SMALL, "--profile", "quick") == (
        "--profile quick: p.yaml has no such profile; none is known"
    )


# Data files.


def write_arrays(path: Path, **changed: Any) -> None:
    """A file that the dataset `hdf5` can read, with some arrays other than they should be."""
    random = np.random.default_rng(0)
    arrays = {
        "stimulus": (2 * random.integers(0, 2, (400, 6, 6)) - 1).astype(np.int8),
        "response": random.poisson(1.0, (400, 2)).astype(float),
    } | changed
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array


FILE = """
datasets:
  mine:
    plugin: hdf5
    with: {path: mine.h5}
"""


def response(cell: int, value: float) -> Any:
    counts = np.random.default_rng(0).poisson(1.0, (400, 2)).astype(float)
    counts[:, cell] = value
    return counts


def test_a_data_file_that_is_not_there_is_refused_before_anything_runs(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert refusal(FILE) == (
        f"p.yaml:4:12: datasets.mine.with.path: there is no file {tmp_path}/mine.h5; check the path"
    )
    assert not (tmp_path / "runs").exists()


def test_a_truncated_file_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    write_arrays(tmp_path / "mine.h5")
    with (tmp_path / "mine.h5").open("r+b") as file:
        file.truncate(3000)
    assert refusal(FILE).startswith(
        f"p.yaml:2:3: datasets.mine: {tmp_path}/mine.h5 cannot be read as HDF5 (truncated file"
    )


def test_a_file_of_another_format_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.h5").write_text("time,spikes\n0,1\n")
    assert refusal(FILE) == (
        f"p.yaml:2:3: datasets.mine: {tmp_path}/mine.h5 cannot be read as HDF5 (file signature not "
        "found); it may be truncated or of another format: copy or export it again"
    )


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"response": None, "responses": response(0, 1.0)},
            "there is no array 'response'; did you mean 'responses'?",
        ),
        (
            {"response": response(0, 1.0)[:390]},
            "'response' has 390 frames and 'stimulus' has 400 (dimension 'frame'); cut them to the "
            "same frames, one bin of the response for each frame shown",
        ),
        (
            {"response": response(0, 1.0)[:, :1, None]},
            "'response' is of shape (400, 1, 1) and its dimensions are given as ['frame', 'cell']; "
            "give one of ['repeat', 'frame', 'cell'] for each dimension",
        ),
    ],
)
def test_an_array_that_does_not_fit_is_refused_with_its_file_and_name(
    refusal: Callable[..., str], tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    write_arrays(tmp_path / "mine.h5", **changed)
    assert refusal(FILE) == f"p.yaml:2:3: datasets.mine: {tmp_path}/mine.h5: {problem}"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            np.nan,
            "'response' of cell 1 is NaN in all frames, so the cell cannot be fitted; leave it "
            "out (dimension 'cell')",
        ),
        (
            0.0,
            "'response' of cell 1 has zero spikes, so the cell cannot be fitted; leave it out "
            "(dimension 'cell')",
        ),
        (-1.0, "'response' in spikes per bin is negative; check the attribute 'units'"),
        (
            np.inf,
            "'response' of cell 1 is infinite (dimension 'frame'); use NaN for missing responses",
        ),
    ],
)
def test_a_response_that_nothing_can_be_fitted_to_is_refused(
    mistake: Callable[..., str], tmp_path: Path, value: float, problem: str
) -> None:
    write_arrays(tmp_path / "mine.h5", response=response(1, value))
    assert mistake(FILE) == f"p.yaml:2:3: datasets.mine: train: {problem}"


# What the options make impossible.


def test_parts_that_leave_a_split_empty_are_refused(
    mistake: Callable[..., str], tmp_path: Path
) -> None:
    write_arrays(tmp_path / "mine.h5")
    assert mistake(FILE.replace("mine.h5}", "mine.h5, segment_frames: 100, test: 0.2}")) == (
        f"p.yaml:2:3: datasets.mine: {tmp_path}/mine.h5: validation (0.1) and test (0.2) of 400 "
        "frames in 4 segments leave none for validation; change these parts, or take shorter "
        "segments"
    )


def test_a_filter_in_time_of_several_cells_asks_which(mistake: Callable[..., str]) -> None:
    text = f"""
datasets:
  cells: {{{CELL}, threshold: 0.0, cells: 2}}}}
  one: {{plugin: temporal_collapse, data: cells, with: {{lags: 5}}}}
"""
    assert mistake(text) == (
        "p.yaml:3:3: datasets.one: the recording has 2 cells and the filter is that of one cell; "
        "choose one with cell: 0, or each in turn with sweep: {cell: [...]}"
    )


def test_a_convolution_larger_than_the_field_is_refused(mistake: Callable[..., str]) -> None:
    text = SMALL.replace("plugin: ln", "plugin: cnn")
    text = text.replace("lags: 5, length_factors: [1]", "lags: 5, kernel: 12")
    sentence = mistake(text)
    assert sentence.startswith("p.yaml:4:3: models.ln: filters of 12 checks")
    assert sentence.endswith("it has 8 x 8; make kernel smaller")


def test_sweeps_of_models_and_data_that_never_meet_are_refused(
    refusal: Callable[..., str],
) -> None:
    text = f"""
datasets:
  one: {{{CELL}, threshold: 0.0}}, sweep: {{gain: [1.0]}}}}
  two: {{{CELL}, threshold: 0.0}}, sweep: {{gain: [2.0]}}}}
models:
  ln: {{plugin: ln, data: one, with: {{lags: 5, length_factors: [1]}}}}
analyses:
  score: {{plugin: score, models: [ln], data: two}}
"""
    assert "the sweeps of this dataset and of the models have no point" in refusal(text)


# The command line.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--workers", "0"], "--workers must be 1 or more (got 0)"),
        (["--workers", "two"], 'Invalid value for --workers: unable to convert "two" into int.'),
        (["--wrokers", "2"], "Unknown option: --wrokers. Did you mean --workers?"),
        (["--force", "l"], "--force l: there is no such step; did you mean 'ln'?"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    refusal: Callable[..., str], arguments: list[str], problem: str
) -> None:
    assert refusal(SMALL, *arguments) == problem


def test_a_command_without_its_argument_is_refused(command: Callable[..., Any]) -> None:
    ended = command()
    expected = "retina-run: Parameter PIPELINE requires an argument.\n"
    assert (ended.code, ended.err) == (2, expected)


def test_a_report_of_what_is_no_run_is_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = command("report", "empty")
    assert (ended.code, ended.err) == (
        2,
        "retina-run: empty: this is not the folder of a run, because it has no provenance.json\n",
    )
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"steps": 3}', b"\xff"])
def test_a_report_of_a_damaged_run_is_refused(
    command: Callable[..., Any], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/provenance.json").write_bytes(content)
    ended = command("report", "run")
    assert ended.code == 2
    assert ended.err.startswith("retina-run: run/provenance.json does not describe a run (")
    assert len(ended.err.splitlines()) == 1


def test_a_scheduler_that_does_not_answer_is_named(refusal: Callable[..., str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    sentence = refusal(SMALL, "--scheduler", address)
    assert sentence.startswith(f"the dask scheduler {address} does not answer (")


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(
    retina_run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(SMALL.replace("lags", "lgas"))
    done = retina_run("p.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "retina-run: p.yaml:5:39: models.ln.with.lgas: there is no such option; "
        "did you mean 'lags' or 'loss'?\n"
    )


# Places that cannot be written to.


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_folder_under_a_file_cannot_be_written_to(
    refusal: Callable[..., str], tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("here")
    place = "file/below/store" if option == "--out" else "file/below"
    assert refusal(SMALL, option, "file/below") == (
        f"{place}: cannot be written to (Not a directory); choose another folder with --store or "
        "--out"
    )
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_folder_without_permission_cannot_be_written_to(
    refusal: Callable[..., str], tmp_path: Path, option: str
) -> None:
    closed = Path("/proc") / "runs"  # where not even root makes a folder
    if os.geteuid() != 0:
        closed = tmp_path / "closed" / "runs"
        closed.parent.mkdir(mode=0o500)
    store = ["--store", "runs/store"] if option == "--out" else []
    sentence = refusal(SMALL, option, closed, *store)
    assert sentence.startswith(f"{closed}: cannot be written to (")
    assert not closed.exists()


LIMITED = """
import resource, signal, sys
from retinakit.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


def test_a_full_disk_is_named_and_no_part_of_a_result_is_kept(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SMALL.lstrip())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "20000", "p.yaml", "--store", "runs/store"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (sentence,) = (s for s in done.stderr.splitlines() if s.startswith("retina-run: "))
    assert sentence == (
        "retina-run: p.yaml:2:3: datasets.cell: runs/store: the disk is full; free some space and "
        "run again, which goes on from here"
    )
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("what", ["provenance.json", "resolved.yaml", "log.jsonl"])
def test_a_disk_that_fills_up_while_the_folder_is_written_is_named(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    genuine = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = genuine(path, mode, *args, **kwargs)
        if path.name == what and mode != "r":
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return file

    monkeypatch.setattr(Path, "open", full)
    assert refusal(SMALL) == (
        "runs: the disk is full; free some space and run again, which goes on from here"
    )
    monkeypatch.setattr(Path, "open", genuine)


def test_a_fit_goes_on_where_no_checkpoint_can_be_written(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
) -> None:
    from retinakit.training import loop as training

    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(training.torch, "save", full)
    text = SMALL.replace("plugin: ln", "plugin: lnp")
    text = text.replace("length_factors: [1]", "steps: 4, check_every: 2")
    (tmp_path / "p.yaml").write_text(text)
    ended = command("p.yaml")
    assert ended.code == 0, ended.err
    assert "the checkpoint could not be written ([Errno 28] No space left on device)" in caplog.text
    assert list((tmp_path / "runs/store/unfinished").iterdir()) == []


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in `retina-run schema | head`."""
    command = [sys.executable, "-c", "from retinakit.cli import main; main()", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 1
    assert said == b""


def test_a_run_that_leaves_nothing_to_show_is_the_mistakes_exit_code(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["stimulus"], file["response"] = np.full((400, 4, 4), np.nan), np.ones((400, 1))
    (tmp_path / "p.yaml").write_text(
        "datasets: {mine: {plugin: hdf5, with: {path: mine.h5}}}\n"
        "analyses: {sta: {plugin: sta, data: mine}}\n"
    )
    ended = command("p.yaml")
    assert ended.code == 2
    (sentence,) = (line for line in ended.err.splitlines() if line.startswith("retina-run: "))
    assert "datasets.mine" in sentence and "NaN" in sentence
    assert "report.html" in ended.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("segment: trial, segment_frames: 50", "segment and segment_frames both say"),
        ("test_segment_frames: 50", "test_segment_frames needs test_stimulus"),
        ("test_onset: 0.5", "test_onset needs test_stimulus"),
    ],
)
def test_options_of_hdf5_that_would_be_ignored_are_refused(
    options: str, sentence: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(
        f"datasets: {{mine: {{plugin: hdf5, with: {{path: mine.h5, {options}}}}}}}\n"
    )
    ended = command("check", "p.yaml")
    assert ended.code == 2
    assert sentence in ended.err


def test_a_field_too_small_for_several_layers_with_stride_is_refused() -> None:
    options = {"kernel": 3, "stride": 2, "layers": 2, "deeper_kernel": 3, "deeper_padding": "valid"}
    field = xr.Dataset(coords={"lag": range(2), "y": range(6), "x": range(9), "cell": [0]})
    with pytest.raises(UserError, match="7 x 7 checks or more and it has 6 x 9"):
        CNN(options | {"lags": 2}).build(field)
