"""A sweep of 250 recordings of 2,000 frames, with a spike-triggered average of each.

What is timed is the command in one process, with its start: once with an empty store, and again
with everything stored. The goals are 40 and 5 s of processor time.
"""

import resource
import subprocess
import sys

import pytest

PIPELINE = f"""
datasets:
  cell:
    plugin: subunit_rgc
    with: {{frames: 2000, validation_frames: 500, test_frames: 500, repeats: 5}}
    sweep: {{seed: {list(range(250))}}}
analyses:
  sta: {{plugin: sta, data: cell, with: {{lags: 10}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("small-tasks")
    (made / "sweep.yaml").write_text(PIPELINE)
    return made


@pytest.mark.parametrize("state", ["cold", "stored"])
def test_500_small_tasks(benchmark, folder, state):
    def run():
        command = [sys.executable, "-m", "retinakit.cli", "sweep.yaml"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    benchmark.pedantic(run, rounds=1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    benchmark.extra_info["processor seconds"] = sum(
        getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime")
    )
