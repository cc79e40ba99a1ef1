"""Fixtures shared by the tests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

SOURCES = Path(__file__).parent / "distributions"

# Their tests run in the tests of the kit, with the distribution installed.
collect_ignore = ["distributions"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-yaml", type=int, default=300, help="Mutated pipelines to check.")
    parser.addoption("--fuzz-hdf5", type=int, default=200, help="Mutated HDF5 files to read.")


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


@pytest.fixture
def network() -> Callable[..., Any]:
    """Makes a convolutional network with parameters of one's own, without a fit.

    Of one cell and one layer, with an output of log(1 + exp(x)). `kernels` is (filter, lag, y, x),
    `output` (filter, map_y, map_x) and by default 1 everywhere, `field` the sides of the stimulus.
    """
    import numpy as np
    import torch
    import xarray as xr

    from retinakit.contracts import coordinates_of
    from retinakit_plugins.models.cnn import CNN

    def make(
        kernels: Any,
        field: tuple[int, int] = (8, 8),
        output: Any = None,
        bias: Any = 0.0,
        output_bias: float = 0.0,
        **options: Any,
    ) -> CNN:
        filters, lags, side = np.shape(kernels)[:3]
        sizes = {"filters": filters, "lags": lags, "kernel": side}
        model = CNN({"output": "softplus", "dense_sign": "any", **sizes, **options})
        nothing = xr.Dataset(
            {"stimulus": (("frame", "y", "x"), np.zeros((1, *field)))},
            coords={"cell": [0], "y": np.arange(field[0]), "x": np.arange(field[1])},
            attrs={"frame_interval": 1 / 30},
        )
        model.field = coordinates_of(nothing, lags)
        module: Any = model.build(model.field)
        with torch.no_grad():
            module.kernel[:, :, 0] = torch.tensor(np.moveaxis(kernels, 1, 0), dtype=torch.float32)
            module.bias[:] = torch.as_tensor(bias)
            module.dense[0] = torch.as_tensor(1.0 if output is None else np.asarray(output))
            module.dense_bias[:] = output_bias
        model.module = module.eval()
        return model

    return make


@pytest.fixture
def recording_of() -> Callable[..., Any]:
    """Makes the recording of a cell that fires as a model predicts, under ±1 white noise."""
    import numpy as np
    import xarray as xr

    from retinakit.contracts import make_recording, make_split

    def make(model: Any, frames: int = 2000, repeats: int = 1, seed: int = 0) -> Any:
        random = np.random.default_rng(seed)
        shape = (model.field.sizes["y"], model.field.sizes["x"])

        def split(length: int, repeats: int) -> xr.Dataset:
            stimulus = (2 * random.integers(0, 2, (length, *shape)) - 1).astype(np.int8)
            shown = xr.DataArray(stimulus, dims=("frame", "y", "x"))
            shown = shown.assign_coords(segment=("frame", np.zeros(length, int)))
            rate = model.predict(shown).fillna(0).values.astype(float)
            counts = random.poisson(rate, (repeats, *rate.shape))
            counts = counts if repeats > 1 else counts[0]
            return make_split(stimulus, counts, frame_interval=1 / 30, rate=rate)

        lengths = {"train": (frames, 1), "validation": (200, 1), "test": (1000, repeats)}
        return make_recording({name: split(*sizes) for name, sizes in lengths.items()})

    return make
