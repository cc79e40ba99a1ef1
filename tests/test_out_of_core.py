"""Recordings larger than memory: read once, in bounded memory, here and on the workers of dask."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from retinakit.contracts import UserError, frame_blocks, make_split
from retinakit.pipeline.document import read_pipeline
from retinakit.pipeline.execute import Outcome, run_here, run_on_dask
from retinakit.pipeline.graph import Task, build
from retinakit.pipeline.store import Store
from retinakit.registry import Registry
from retinakit.spikes import spike_triggered_ensemble, sta, stc
from retinakit_plugins.datasets import hdf5

FRAMES, SIDE = 2000, 6
BLOCK = 200


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_blocks, "BYTES", BLOCK * SIDE**2)


def arrays() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (FRAMES, SIDE, SIDE), np.int8) - 1
    return stimulus, random.poisson(0.2, (FRAMES, 3))


class Film(BackendArray):
    """A movie in chunks of frames, that counts how often each is read, and by which threads.

    Of the last film, and of the copies that dask makes of it.
    """

    reads: ClassVar[NDArray[np.int64]]
    threads: ClassVar[set[str]]

    def __init__(self, movie: Any, chunk: int):
        self.movie, self.chunk = movie, chunk
        self.shape, self.dtype = movie.shape, movie.dtype
        Film.reads, Film.threads = np.zeros(-(-len(movie) // chunk), np.int64), set()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER_1VECTOR
        return indexing.explicit_indexing_adapter(key, self.shape, support, self.read)

    def read(self, key: tuple[Any, ...]) -> Any:
        assert isinstance(key[0], slice), "single frames are slow to read"
        self.reads[key[0].start // self.chunk : -(-key[0].stop // self.chunk)] += 1
        self.threads.add(threading.current_thread().name)
        return self.movie[key]

    def split(self, response: Any) -> xr.Dataset:
        dims = ("frame", "y", "x")
        variable = xr.Variable(
            dims,
            indexing.LazilyIndexedArray(self),
            encoding={"preferred_chunks": {"frame": self.chunk}},
        )
        return make_split(variable, response, frame_interval=0.1)


class Steps:
    """Progress, as it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float]] = []

    def __call__(self, done: float, total: float, message: str = "") -> None:
        self.told.append((done, total))

    def reached_the_end(self, total: int, least: int = 2) -> bool:
        done = [step for step, _ in self.told]
        return (
            len(done) >= least
            and done == sorted(set(done))
            and self.told[-1] == (total, total)
            and {whole for _, whole in self.told} == {total}
        )


# Reading here.


@pytest.mark.parametrize("chunk", [7, 50, 200, 230, 700])
def test_no_chunk_of_a_file_is_read_twice(chunk: int) -> None:
    stimulus, response = arrays()
    here = make_split(stimulus, response, frame_interval=0.1)
    film, steps = Film(stimulus, chunk), Steps()
    average = sta(film.split(response), 12, progress=steps)
    xr.testing.assert_identical(average.sta, sta(here, 12).sta)
    assert (film.reads == 1).all()
    assert steps.reached_the_end(FRAMES)
    film, steps = Film(stimulus, chunk), Steps()
    ensemble = spike_triggered_ensemble(film.split(response), 12, cell=1, progress=steps)
    xr.testing.assert_identical(ensemble, spike_triggered_ensemble(here, 12, cell=1))
    assert (film.reads == 1).all()
    assert steps.reached_the_end(FRAMES)


def test_chunks_that_are_too_long_to_be_held_are_read_in_parts() -> None:
    stimulus, response = arrays()
    film = Film(stimulus, FRAMES)
    sta(film.split(response), 12)
    assert film.reads == FRAMES // BLOCK


def test_several_splits_are_one_bar() -> None:
    stimulus, response = arrays()
    split = make_split(stimulus, response, frame_interval=0.1)
    steps = Steps()
    sta([split, split], 5, progress=steps)
    assert steps.reached_the_end(2 * FRAMES)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from retinakit.contracts import frame_blocks
from retinakit.contracts import UserError
from retinakit.spikes import spike_triggered_ensemble, sta, stc
from retinakit_plugins.datasets import hdf5

def memory(name):
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(name))
    return int(line.split()[1]) * 1024

def results():
    crop = train.isel(y=slice(100, 104), x=slice(100, 104))
    return [
        sta(train, 8, progress=lambda done, total, message: told.append((done, total))).sta,
        stc(crop, 8, cell=1).stc,
        spike_triggered_ensemble(crop, 8, cell=1).ensemble,
    ]

frame_blocks.BYTES = hdf5.IN_MEMORY = 2**24
recording = hdf5.HDF5({"path": sys.argv[1], "validation": 0.01, "test": 0.01}).load()
train, told, before = recording["train"].to_dataset(), [], memory("VmRSS")
streamed, grown, steps = results(), memory("VmHWM") - before, list(told)
train = train.load()
held = memory("VmRSS") - before
same = [bool(np.allclose(*pair, atol=1e-6)) for pair in zip(streamed, results(), strict=True)]
print(json.dumps([grown, held, same, steps]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure with")
def test_memory_is_bounded_by_the_blocks_and_not_by_the_movie(tmp_path: Path) -> None:
    frames, height, width = 6500, 200, 250  # 325 MB
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "large.h5", "w") as file:
        chunks = (150, height, width)
        stimulus = file.create_dataset(
            "stimulus", (frames, height, width), np.int8, chunks=chunks, compression="lzf"
        )
        for start in range(0, frames, 500):
            checks = 2 * random.integers(0, 2, (500, height // 25, width // 25), np.int8) - 1
            stimulus[start : start + 500] = checks.repeat(25, 1).repeat(25, 2)
        file["response"] = random.poisson(0.05, (frames, 3))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.h5")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown, held, same, steps = json.loads(done.stdout)
    print(grown, held)
    assert held > 0.95 * 0.98 * frames * height * width, "the measure sees a movie that is held"
    assert grown < held / 4
    assert same == [True, True, True]
    assert [done for done, _ in steps] == [*range(300, 6370, 300), 6370]
    assert {total for _, total in steps} == {6370}


# The dataset `hdf5`.


def own_file(path: Path, stimulus: Any, response: Any, **how: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("stimulus", data=stimulus, **how)
        file["response"] = response
    return path


@pytest.mark.parametrize("dims", [["frame", "y", "x"], ["x", "y", "frame"], ["y", "frame", "x"]])
def test_a_stimulus_in_a_file_is_indexed_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: list[str]
) -> None:
    stimulus, response = arrays()
    stored = stimulus[..., :5].transpose([("frame", "y", "x").index(dim) for dim in dims])
    path = own_file(tmp_path / "own.h5", stored, response, chunks=(4, 3, 2))
    options = {"path": path, "stimulus_dims": dims}
    held = hdf5.HDF5(options).load()["train"]["stimulus"]
    np.testing.assert_array_equal(held, stimulus[: len(held), :, :5])
    monkeypatch.setattr(hdf5, "IN_MEMORY", 0)
    lazy = hdf5.HDF5(options).load()["train"]["stimulus"]
    frames = [7, 3, 3, 1500]
    for key in (
        {"frame": 3},
        {"frame": slice(5, 90, 4), "x": slice(None, None, -1)},
        {"frame": frames, "y": [0, 2]},
        {"frame": np.int64(2), "x": -1},
        {"y": 1, "x": 2, "frame": 0},
        {"x": 1, "frame": slice(20, 20)},
    ):
        xr.testing.assert_identical(lazy.isel(key), held.isel(key))
    assert lazy.encoding["preferred_chunks"] == dict(zip(dims, (4, 3, 2), strict=True))


def test_a_large_stimulus_is_read_when_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stimulus, response = arrays()
    path = own_file(tmp_path / "own.h5", stimulus, response)
    monkeypatch.setattr(hdf5, "IN_MEMORY", 0)
    train = hdf5.HDF5({"path": path}).load()["train"].to_dataset()
    path.unlink()
    with pytest.raises(UserError, match=r"there is no file .*own.h5"):
        sta(train, 5)


def test_chunks_that_will_be_read_again_and_again_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hdf5, "IN_MEMORY", 0)
    for chunk, named in ((BLOCK, False), (FRAMES, True)):
        path = own_file(tmp_path / f"{chunk}.h5", *arrays(), chunks=(chunk, SIDE, SIDE))
        hdf5.HDF5({"path": path}).load()
        assert ("stored in chunks of 2000 frames" in caplog.text) == named


# On dask.


@contextmanager
def scheduler(name: str) -> Iterator[None]:
    if name == "distributed":
        from distributed import Client

        with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
            yield
    else:
        with dask.config.set(scheduler=name, num_workers=2):
            yield


@pytest.mark.parametrize("name", ["synchronous", "threads", "distributed"])
@pytest.mark.parametrize("chunk", [30, 230])
def test_workers_of_dask_read_the_blocks_and_find_the_same(name: str, chunk: int) -> None:
    stimulus, response = arrays()
    here = make_split(stimulus, response, frame_interval=0.1)
    film, steps = Film(stimulus, chunk), Steps()
    split = film.split(response).chunk(frame=chunk, cell=2)
    with scheduler(name):
        average = sta(split, 12, progress=steps)
        xr.testing.assert_identical(average.sta, sta(here, 12).sta)
        assert steps.reached_the_end(FRAMES)
        assert (film.reads == 1).all()
        if name != "synchronous":
            assert threading.current_thread().name not in film.threads
            assert len(film.threads) == 2
        xr.testing.assert_identical(stc(split, 3, cell=1), stc(here, 3, cell=1))
        xr.testing.assert_identical(
            spike_triggered_ensemble(split, 12, cell=1),
            spike_triggered_ensemble(here, 12, cell=1),
        )


@pytest.mark.parametrize("algorithm", ["float", "toeplitz"])
def test_rates_and_floats_are_summed_on_dask(algorithm: str) -> None:
    stimulus, response = arrays()
    split = make_split(0.3 * stimulus, response * 0.7, frame_interval=0.1)
    average = sta(split.chunk(frame=100), 12, algorithm=algorithm)
    xr.testing.assert_allclose(average, sta(split, 12, algorithm=algorithm), rtol=1e-5, atol=1e-6)


def test_a_split_that_xarray_opens_in_chunks_is_summed_on_dask(tmp_path: Path) -> None:
    stimulus, response = arrays()
    split = make_split(stimulus, response[None], frame_interval=0.1)
    packed = {"stimulus": {"zlib": True, "chunksizes": (90, SIDE, SIDE)}}
    split.to_netcdf(tmp_path / "split.nc", engine="h5netcdf", encoding=packed)
    expected = sta(split, 12)
    for chunks in (None, {}, {"frame": 180}):
        with xr.open_dataset(tmp_path / "split.nc", engine="h5netcdf", chunks=chunks) as opened:
            xr.testing.assert_identical(sta(opened, 12).sta, expected.sta)


def test_a_mistake_on_a_worker_is_told_as_it_is_here() -> None:
    stimulus, response = arrays()
    stimulus[-1] = 3
    split = make_split(stimulus, response, frame_interval=0.1).chunk(frame=100)
    with scheduler("distributed"), pytest.raises(UserError, match="more than two values"):
        sta(split, 5, algorithm="bits")


# In a pipeline.

PIPELINE = """
datasets:
  mine: {plugin: hdf5, with: {path: own.h5, chunks: 100}}
analyses:
  sta: {plugin: sta, data: mine, with: {lags: 5}}
"""


class Watch:
    """What a run tells."""

    def __init__(self) -> None:
        self.steps: dict[str, Steps] = {}

    def started(self, task: Task) -> None:
        self.steps.setdefault(task.key, Steps())

    def progressed(self, key: str, done: float, total: float, message: str) -> None:
        self.steps.setdefault(key, Steps())(done, total, message)

    def ended(self, task: Task, outcome: Outcome) -> None:
        assert outcome.ok, outcome.traceback or outcome.message


@pytest.mark.parametrize("name", ["sta", "stc"])
def test_an_analysis_tells_a_run_how_far_it_is(tmp_path: Path, name: str) -> None:
    own_file(tmp_path / "own.h5", *arrays())
    text = PIPELINE.replace(", chunks: 100", "").replace("plugin: sta", f"plugin: {name}")
    (tmp_path / "p.yaml").write_text(text)
    graph, watch = build(*read_pipeline(tmp_path / "p.yaml"), Registry()), Watch()
    run_here(graph, Store(tmp_path / "store"), Registry(), watch)
    (key,) = (task.key for task in graph.tasks.values() if task.kind == "analysis")
    assert watch.steps[key].reached_the_end(1600 if name == "sta" else 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pipeline_shares_an_average_among_the_workers_of_its_scheduler(
    tmp_path: Path, workers: int
) -> None:
    from distributed import LocalCluster

    path = own_file(tmp_path / "own.h5", *arrays(), chunks=(50, SIDE, SIDE))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    graph, store = build(*read_pipeline(tmp_path / "p.yaml"), Registry()), Store(tmp_path / "store")
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=":0",
    ) as cluster:
        run_on_dask(graph, store, Registry(), Watch(), scheduler=cluster.scheduler_address)
    results = {
        task.step: xr.open_datatree(store.path(task.key), engine="h5netcdf")
        for task in graph.tasks.values()
    }
    train = hdf5.HDF5({"path": path}).load()["train"].to_dataset()
    xr.testing.assert_allclose(results["sta"].to_dataset().sta, sta(train, 5).sta)
    assert "stimulus" not in results["mine"]["train"], "it stays in the user's file"
