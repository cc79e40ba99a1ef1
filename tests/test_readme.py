"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language, section):
    """The code blocks of one language under a heading."""
    body = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", body, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def retina_run(*arguments):
    command = [sys.executable, "-m", "retinakit.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_pipeline_shown_has_no_mistake(folder):
    Path("pipeline.yaml").write_text(blocks("yaml", "A pipeline")[0])
    result = retina_run("check", "pipeline.yaml")
    assert result.returncode == 0, result.stderr


def test_your_own_data_runs_to_scores(folder):
    (make,), (pipeline,) = blocks("python", "Your own data"), blocks("yaml", "Your own data")
    exec(compile(make, "README.md", "exec"), {})
    Path("mine.yaml").write_text(pipeline)
    result = retina_run("mine.yaml")
    assert result.returncode == 0, result.stderr
    (report,) = folder.glob("runs/mine/*/report.html")
    scores = xr.open_datatree(report.parent / "analyses" / "score.nc", engine="h5netcdf")
    # The made-up cell is an LN cell, so its model predicts above chance.
    assert scores["ln"]["bits_per_spike"].item() > 0.05


def test_the_plugin_shown_passes_the_checks(folder, monkeypatch):
    plugin, check = blocks("python", "A plugin")
    Path("my_plugin.py").write_text(plugin)
    monkeypatch.syspath_prepend(str(folder))
    import my_plugin

    assert [spec.name for spec in my_plugin.retinakit_analyses()] == ["rate"]
    exec(compile(check, "README.md", "exec"), {"Rate": my_plugin.Rate})
