"""The pipelines that retinakit brings have no mistake, in any of their profiles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinakit_plugins.datasets.antolik2016 import FILES
from retinakit_plugins.datasets.liu2017 import FROZEN_STIMULUS, SPIKES

FOLDER = Path(__file__).parents[1] / "pipelines"
PAPERS = ("yan2020", "klindt2017", "murray", "zheng2021")
PIPELINES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
def test_a_pipeline_has_no_mistake_in_any_profile(
    pipeline: Path,
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A check reads no more of the recorded files than their contents' hash.
    recorded = {"liu2017": (SPIKES, FROZEN_STIMULUS)}
    recorded |= {f"antolik2016/region{scan}": tuple(FILES.values()) for scan in (1, 2, 3)}
    for folder, names in recorded.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_text("in place of the recording")
    monkeypatch.setenv("RETINAKIT_DATA", str(tmp_path))
    ended = command("check", FOLDER / pipeline)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("pipeline", [p for p in PIPELINES if p.parts[0] in PAPERS], ids=str)
def test_the_quick_profile_of_a_paper_needs_no_recording(
    pipeline: Path, command: Callable[..., Any]
) -> None:
    ended = command("check", FOLDER / pipeline, "--profile", "quick")
    assert ended.code == 0, ended.err
