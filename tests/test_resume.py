"""Runs that are interrupted, that share a store, and that run in several processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

FIT = """
datasets:
  cell:
    plugin: subunit_rgc
    with: {frames: 2000, validation_frames: 300, test_frames: 300, threshold: 0.0, lags: 5}
models:
  cnn:
    plugin: cnn
    data: cell
    with:
      {lags: 5, filters: 2, kernel: 5, batch: 200, steps: 600, check_every: 10, starts: STARTS}
"""

SWEEP = """
datasets:
  cell:
    plugin: subunit_rgc
    with: {frames: 1000, validation_frames: 300, test_frames: 300, threshold: 0.0, lags: 5}
models:
  cnn:
    plugin: cnn
    data: cell
    with: {lags: 5, filters: 2, kernel: 5, batch: 200, steps: 40, check_every: 20}
    sweep: {seed: [0, 1]}
analyses:
  score: {plugin: score, models: [cnn], with: {draws: 20}}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `retina-run` in a process of its own, with one thread, so that numbers are exact."""
    started: list[subprocess.Popen[str]] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETINAKIT_")}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def run(text: str, *args: str) -> subprocess.Popen[str]:
        (tmp_path / "p.yaml").write_text(text.lstrip())
        command = [sys.executable, "-m", "retinakit.cli", "p.yaml", *args]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str], cwd: Path) -> Path:
    """Waits for a run to end well; returns its folder."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return cwd / Path(out.split()[1]).parent


def fits(run: Path) -> dict[str, xr.DataTree]:
    """The fitted models of a run by their file, with parameters, weights and curves."""
    found = {}
    for path in sorted((run / "models").rglob("*.nc")):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            found[str(path.relative_to(run))] = tree.load()
    return found


def same_fits(one: Path, other: Path) -> bool:
    a, b = fits(one), fits(other)
    return bool(a) and list(a) == list(b) and all(a[name].identical(b[name]) for name in a)


def ended(run: Path) -> dict[str, Any]:
    """How each task of a run ended, from its log."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {event["label"]: event for event in events if event["event"] == "ended"}


# Interrupted fits.


@pytest.mark.parametrize(
    ("plugin", "starts", "last"),
    [
        ("cnn", 1, "checkpoint.0.pt"),
        ("cnn", 2, "checkpoint.0.pt"),  # two starts side by side
        ("lnp", 2, "checkpoint.1.pt"),  # one after the other
    ],
)
def test_a_killed_fit_goes_on_from_its_checkpoint_to_the_same_weights(
    start: Callable[..., Any],
    command: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    plugin: str,
    starts: int,
    last: str,
) -> None:
    text = FIT.replace("STARTS", str(starts))
    if plugin == "lnp":
        text = text.replace("plugin: cnn", "plugin: lnp").replace("filters: 2, kernel: 5, ", "")
    process = start(text)
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.glob(f"runs/store/unfinished/*/{last}"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (checkpoint,) = found
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < step < 600

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with caplog.at_level(logging.INFO, "retinakit"):
            done = command("p.yaml")
    finally:
        torch.set_num_threads(threads)
    assert done.code == 0, done.err
    assert f"resumes from step {step} of 600" in caplog.text
    run = tmp_path / Path(done.out.split()[1]).parent
    assert ended(run)["cell"]["status"] == "stored"
    assert ended(run)["cnn"]["message"] == "continued from a checkpoint"
    assert not any((tmp_path / "runs/store/unfinished").iterdir())

    whole = finished(start(text, "--out", "whole"), tmp_path)
    assert "message" not in ended(whole)["cnn"]
    assert same_fits(run, whole)


def test_a_checkpoint_that_cannot_be_read_is_left_aside_with_a_warning(
    command: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.yaml").write_text(FIT.replace("STARTS", "1").replace("steps: 600", "steps: 50"))
    done = command("p.yaml")
    run = tmp_path / Path(done.out.split()[1]).parent
    key = ended(run)["cnn"]["key"]
    checkpoint = tmp_path / "again/store/unfinished" / key / "checkpoint.0.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"half of a checkpoint")
    done = command("p.yaml", "--out", "again")
    assert done.code == 0, done.err
    assert "checkpoint.0.pt cannot be used" in caplog.text
    assert same_fits(run, tmp_path / Path(done.out.split()[1]).parent)


def test_what_a_killed_run_left_of_a_result_is_cleared_away(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(FIT.replace("STARTS", "1").replace("steps: 600", "steps: 50"))
    run = tmp_path / Path(command("p.yaml").out.split()[1]).parent
    left = tmp_path / "again/store/unfinished" / f"{ended(run)['cell']['key']}-0123"
    left.mkdir(parents=True)
    (left / "result.nc").write_bytes(b"half")
    assert command("p.yaml", "--out", "again").code == 0
    assert not left.exists()


# Longer fits.

STEPS = FIT.replace("STARTS", "1").replace("steps: 600", "steps: 40, decay: drop")


def test_a_longer_fit_goes_on_from_a_finished_one_to_the_same_weights(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    longer = STEPS.replace("steps: 40", "steps: 80")
    (tmp_path / "p.yaml").write_text(STEPS)
    assert command("p.yaml").code == 0
    runs = {}
    for out in ("runs", "anew"):
        (tmp_path / "p.yaml").write_text(longer)
        done = command("p.yaml", "--out", out)
        assert done.code == 0, done.err
        runs[out] = tmp_path / Path(done.out.split()[1]).parent
    assert ended(runs["runs"])["cnn"]["message"] == "continued from the fit of 40 steps"
    assert "message" not in ended(runs["anew"])["cnn"]
    assert same_fits(*runs.values())
    # A fit that is forced begins anew, and a shorter one does not go on from a longer one, which
    # stays in its place.
    done = command("p.yaml", "--force", "cnn")
    assert "message" not in ended(tmp_path / Path(done.out.split()[1]).parent)["cnn"]
    (tmp_path / "p.yaml").write_text(STEPS.replace("steps: 40", "steps: 60"))
    done = command("p.yaml")
    assert "message" not in ended(tmp_path / Path(done.out.split()[1]).parent)["cnn"]
    (kept,) = (tmp_path / "runs/store/finished").glob("*/*")
    assert kept.name == "80"


def test_a_longer_fit_that_cannot_go_on_says_why(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    for steps in (20, 40):
        text = STEPS.replace("steps: 40, decay: drop", f"steps: {steps}, decay: cosine")
        (tmp_path / "p.yaml").write_text(text)
        done = command("p.yaml")
        assert done.code == 0, done.err
    message = ended(tmp_path / Path(done.out.split()[1]).parent)["cnn"]["message"]
    start = "started from scratch, not from the fit of 20 steps: with decay 'cosine'"
    assert message.startswith(start)


def test_a_fit_without_a_checkpoint_ends_well(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(STEPS.replace("check_every: 20", "check_every: 200"))
    done = command("p.yaml")
    assert done.code == 0, done.err


# Several processes.


def test_two_runs_that_share_a_store_compute_each_result_once(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    both = [start(SWEEP), start(SWEEP)]
    one, other = (finished(process, tmp_path) for process in both)
    assert one != other
    a, b = ended(one), ended(other)
    assert len(a) == 5 and set(a) == set(b)
    for label in a:
        assert sorted([a[label]["status"], b[label]["status"]]) == ["done", "stored"], label
    assert same_fits(one, other)


def test_two_workers_find_what_one_finds(start: Callable[..., Any], tmp_path: Path) -> None:
    alone = start(SWEEP, "--out", "alone")
    alone = finished(alone, tmp_path)
    together = finished(start(SWEEP, "--out", "together", "--workers", "2"), tmp_path)
    assert {event["status"] for event in ended(together).values()} == {"done"}
    assert same_fits(alone, together)
    scores = [
        xr.open_datatree(run / "analyses/score.nc", engine="h5netcdf") for run in (alone, together)
    ]
    assert scores[0].identical(scores[1])


def test_a_step_that_fails_on_a_worker_is_told_as_it_is_here(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    process = start(SWEEP.replace("kernel: 5", "kernel: 12"), "--workers", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "report.html" in out
    assert "model    cnn[seed=1]: FAILED: p.yaml:6:3: models.cnn[seed=1]: filters of 12" in err
    assert "Traceback" not in err


def test_a_cluster_that_is_already_there_is_used(start: Callable[..., Any], tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        run = finished(start(SWEEP, "--scheduler", cluster.scheduler_address), tmp_path)
    assert {event["status"] for event in ended(run).values()} == {"done"}
    assert len(fits(run)) == 3
