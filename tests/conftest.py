"""Fixtures shared by the tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

SOURCES = Path(__file__).parent / "distributions"

# Their tests run in the tests of the kit, with the distribution installed.
collect_ignore = ["distributions"]


@dataclass(frozen=True)
class Distributions:
    """The third-party distributions of the tests, installed in a folder of their own.

    Attributes:
        folder: where they are installed; not on the path of the process that runs the tests.
        environment: for a subprocess that is to see them.
        sources: copies of their source folders, by name.
    """

    folder: Path
    environment: Mapping[str, str]
    sources: Mapping[str, Path]


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment of a subprocess: this one, without the user's choice of plugins."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETINAKIT_")}
    return environment | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"} | changes


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """retinakit-example (complete), retinakit-broken and retinakit-conflict, installed."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist share the folder above their own.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, copies = shared / "installed", shared / "sources"
    with FileLock(shared / "distributions.lock"):
        if not folder.exists():
            # A build leaves files beside its sources.
            shutil.copytree(SOURCES, copies, dirs_exist_ok=True)
            unfinished = shared / "installing"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--no-index", "--no-build-isolation", "--disable-pip-version-check"]
            command += ["--target", str(unfinished), *map(str, sorted(copies.iterdir()))]
            subprocess.run(command, check=True, capture_output=True, text=True)
            unfinished.rename(folder)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return Distributions(
        folder,
        clean_environment(PYTHONPATH=os.pathsep.join(path)),
        {source.name: source for source in sorted(copies.iterdir())},
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs `retina-run` with some arguments in this process, in the test's folder."""
    for name in [name for name in os.environ if name.startswith("RETINAKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> Ended:
        from retinakit.cli import main

        monkeypatch.setattr(sys, "argv", ["retina-run", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def retina_run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `retina-run` with some arguments in a process of its own, in an empty folder.

    Its keyword `env` is the environment, such as `distributions.environment`; `cwd` another folder.
    """

    def run(
        *args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "retinakit.cli", *map(str, args)],
            env=dict(env or clean_environment()),
            cwd=cwd or tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
