"""Mistakes: each gives one sentence that says where it is, and leaves nothing behind."""

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from retinakit.pipeline import store as store_module

CELL = "plugin: subunit_rgc, with: {frames: 400, validation_frames: 150, test_frames: 150"
SMALL = f"""
datasets:
  cell: {{{CELL}, threshold: 0.0}}}}
models:
  ln: {{plugin: ln, data: cell, with: {{lags: 5, steps: 4, check_every: 2, batch: 100}}}}
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
    ],
)
def test_a_file_that_is_no_pipeline_is_refused_where_it_goes_wrong(
    refusal: Callable[..., str], text: str, sentence: str
) -> None:
    assert refusal(text) == sentence


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
            "p.yaml:1:1: modles: there is no such option; did you mean 'models'?",
        ),
        (
            "datasets:\n  cell: {plugin: subunit_rgc, wiht: {}}\n",
            "p.yaml:2:31: datasets.cell.wiht: there is no such option; did you mean 'with'?",
        ),
        (
            "datasets:\n  cell:\n    plugin: subunit_rgc\n    with:\n      fraems: 600\n",
            "p.yaml:5:7: datasets.cell.with.fraems: there is no such option; "
            "did you mean 'frames' or 'frame_rate'?",
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
    assert sentence.startswith("p.yaml:1:1: name: it names a folder, so it is not empty")


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
            "analyses:\n  sta: {plugin: sta, data: cell, results: [sta2]}\n  sta2: {plugin: sta}\n",
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
            "p.yaml:6:13: models.ln.sweep.rnak: ln has no option to sweep of that name; "
            "did you mean 'rank'?",
        ),
        ("sweep: {rank: []}", "p.yaml:6:13: models.ln.sweep.rank: the list of values is empty"),
        ("sweep: {rank: 3}", "p.yaml:6:13: models.ln.sweep.rank: it must be a list (got 3)"),
        (
            "sweep: {rank: [1, two]}",
            "p.yaml:6:23: models.ln.sweep.rank.1: it must be an integer (got 'two')",
        ),
        (
            "sweep: {rank: [1, 2, 1]}",
            "p.yaml:6:26: models.ln.sweep.rank.2: the value 1 is already in the list",
        ),
        (
            "sweep: {seed: [0, x]}",
            'p.yaml:6:23: models.ln.sweep.seed.1: it must be an integer (got "x")',
        ),
        (
            "with: {rank: 1}\n    sweep: {rank: [1, 2]}",
            "p.yaml:7:13: models.ln.sweep.rank: the option is also given under 'with'; keep one",
        ),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(
    refusal: Callable[..., str], options: str, sentence: str
) -> None:
    text = f"datasets:\n  cell: {{{CELL}}}}}\nmodels:\n  ln: {{plugin: ln, data: cell}}\n"
    text = text.replace(
        "  ln: {plugin: ln, data: cell}", f"  ln:\n    plugin: ln\n    data: cell\n    {options}"
    ).replace("    data: cell\n", "    data: cell\n", 1)
    # One line: the position of the sweep is that of the sixth line after the models.
    assert refusal(text.replace("    plugin: ln\n    data: cell\n", "    {}\n"), "--dry-run")


# Data files.
