"""The store and the run: nothing stale is served, and nothing that is finished is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit.pipeline.hashes import code_hash, file_hash
from retinakit.pipeline.run import ALIVE, sweep_dead
from retinakit.pipeline.store import Store

PLUGINS = """
import os
import numpy as np
import xarray as xr
from retinakit import Analysis, AnalysisSpec, Dataset, DatasetSpec, hookimpl
from lab_helpers import VALUE


class Base(Analysis):
    def run(self, data):
        return xr.Dataset({"value": ((), VALUE)}, attrs={"a": True, "b": None, "c": {"d": 1}})

    def plot(self, result):
        from matplotlib.figure import Figure
        return Figure()


class Raises(Base):
    def run(self, data):
        raise ZeroDivisionError("no luck")


class Leaves(Base):
    def run(self, data):
        raise SystemExit("as a script does")


class Own(BaseException):
    def __str__(self):
        raise ValueError


class RaisesItsOwn(Base):
    def run(self, data):
        raise Own


class Number(Base):
    def run(self, data):
        os.chdir("/")
        return 3.0


class SourceIsGone(Base):
    def run(self, data):
        import dask.array as da

        def read(block):
            raise FileNotFoundError(2, "No such file", "/elsewhere")

        values = da.zeros(3).map_blocks(read, meta=np.zeros(0))
        return xr.Dataset({"value": ("x", values)})


class CannotDraw(Base):
    def plot(self, result):
        raise ValueError("no paper \\ud800")

    def table(self, result):
        raise SystemExit("no table")


class NotCalled(Base):
    run = 3


class Unmade(Base):
    def __init__(self, config, *, seed):
        raise ValueError("no parts")


class Files(Dataset):
    def files(self):
        return "abc"

    def load(self):
        return None


class Empty(Files):
    def files(self):
        return []


@hookimpl
def retinakit_datasets():
    return [
        DatasetSpec(name="files", target="lab_store:Files", summary="."),
        DatasetSpec(name="empty", target="lab_store:Empty", summary="."),
    ]


@hookimpl
def retinakit_analyses():
    return [
        AnalysisSpec(name=name, target=f"lab_store:{target}", summary=".")
        for name, target in (
            ("base", "Base"),
            ("raises", "Raises"),
            ("leaves", "Leaves"),
            ("not_called", "NotCalled"),
            ("unmade", "Unmade"),
            ("its_own", "RaisesItsOwn"),
            ("number", "Number"),
            ("gone", "SourceIsGone"),
            ("cannot_draw", "CannotDraw"),
        )
    ]
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A distribution of its own, in a folder for PYTHONPATH."""
    folder = tmp_path / "lab"
    info = folder / "lab_store-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "lab_store.py").write_text(PLUGINS)
    (folder / "lab_helpers.py").write_text("VALUE = 1.0\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[retinakit]\nlab = lab_store\n")
    (info / "RECORD").write_text("lab_store.py,,\nlab_helpers.py,,\n")
    return folder


@pytest.fixture
def arrays(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, silent in (("good", False), ("bad", True)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["stimulus"] = random.choice(np.array([-1, 1], np.int8), (400, 4, 4))
            file["spikes"] = random.poisson(1.0, (400, 2)) * (np.array([1, 0]) if silent else 1)


def run(tmp_path: Path, text: str, *args: str, lab: Path | None = None) -> Any:
    (tmp_path / "p.yaml").write_text(text)
    path = os.pathsep.join(filter(None, [str(lab or ""), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "retinakit.cli", "p.yaml", *args],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def of(name: str) -> str:
    return f"{name}: {{plugin: hdf5, with: {{path: {name}.h5, response: spikes}}}}"


LAB = f"datasets:\n  {of('good')}\nanalyses:\n  base: {{plugin: base, data: good}}\n"


def test_an_edited_plugin_is_run_again_and_attributes_of_any_kind_are_stored(
    lab: Path, arrays: None, tmp_path: Path
) -> None:
    first = run(tmp_path, LAB, lab=lab)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "runs/pipeline").iterdir()
    with xr.open_datatree(folder / "analyses/base.nc", engine="h5netcdf") as result:
        assert result["good"].attrs["a"] == 1
        assert result["good"].attrs["c"] == '{"d": 1}'
    assert "base of good: already there" in run(tmp_path, LAB, lab=lab).stderr
    (lab / "lab_helpers.py").write_text("VALUE = 2.0\n")  # what the plugin imports
    again = run(tmp_path, LAB, lab=lab)
    assert "base of good: done" in again.stderr
    assert "dataset  good: already there" in again.stderr


def test_what_goes_wrong_in_one_step_leaves_the_others_and_a_report(
    lab: Path, arrays: None, tmp_path: Path
) -> None:
    text = f"""\
datasets:
  {of("good")}
  {of("bad")}
  empty: {{plugin: empty}}
models:
  ols: {{plugin: ols, data: good, with: {{lags: 2, crop: 3}}}}
  lost: {{plugin: ols, data: bad, with: {{lags: 2, crop: 3}}}}
analyses:
  base: {{plugin: base, data: good}}
  raises: {{plugin: raises, data: good}}
  leaves: {{plugin: leaves, data: good}}
  its_own: {{plugin: its_own, data: good}}
  number: {{plugin: number, data: good}}
  gone: {{plugin: gone, data: good}}
  cannot_draw: {{plugin: cannot_draw, data: good}}
  score: {{plugin: score, models: [ols, lost]}}
"""
    ended = run(tmp_path, text, lab=lab)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (folder,) = (tmp_path / "runs/pipeline").iterdir()
    page = (folder / "report.html").read_text()
    for sentence in (
        "no luck",
        "as a script does",
        "Own: its message cannot be read",
        "run of &#39;lab-store:number&#39; returned a float; it must return an xarray.Dataset",
        "FileNotFoundError: [Errno 2] No such file",
        "no table",
        "no paper",
        "p.yaml:3:3: datasets.bad",
        "zero spikes",
        "a recording is an xarray.DataTree",
    ):
        assert sentence in page
    sentence = "cannot_draw: The figure could not be made (ValueError: no paper \\ud800)"
    assert sentence in ended.stderr
    assert {path.name for path in (folder / "analyses").iterdir()} == {
        "base.nc",
        "cannot_draw.nc",
        "score.nc",
    }
    with xr.open_datatree(folder / "analyses/score.nc", engine="h5netcdf") as scores:
        assert list(scores.children) == ["ols"]


@pytest.mark.parametrize(
    ("dataset", "analysis", "sentence"),
    [
        ("empty", "not_called", "'not_called' cannot be used with these options (TypeError"),
        ("empty", "unmade", "(ValueError: no parts); change them, or report it to its author"),
        ("files", "base", "there is no file a; check the path"),
    ],
)
def test_a_plugin_that_goes_wrong_before_the_run_is_a_sentence(
    lab: Path, tmp_path: Path, dataset: str, analysis: str, sentence: str
) -> None:
    text = f"datasets: {{e: {{plugin: empty}}, d: {{plugin: {dataset}}}}}\n"
    text += f"analyses: {{a: {{plugin: {analysis}, data: e}}}}\n"
    ended = run(tmp_path, text, lab=lab)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


FIT = f"""\
datasets:
  {of("good")}
models:
  ln:
    plugin: cnn
    data: good
    with: {{lags: 3, filters: 2, kernel: 3, batch: 50, steps: 100000, check_every: 5000}}
    sweep: {{seed: [0, 1]}}
"""


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, "1"), (signal.SIGTERM, 143, "1"), (signal.SIGTERM, 143, "2")],
)
def test_a_signal_ends_a_run_with_one_sentence(
    arrays: None, tmp_path: Path, number: int, code: int, workers: str
) -> None:
    (tmp_path / "p.yaml").write_text(FIT)
    process = subprocess.Popen(
        [sys.executable, "-m", "retinakit.cli", "p.yaml", "--workers", workers],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs/store/locks").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "retina-run: interrupted; run it again to continue from here" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "runs/pipeline").glob("*.partial"))


def test_the_folder_of_a_killed_run_is_swept_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    from filelock import FileLock

    dead, living = tmp_path / "1.partial", tmp_path / "2.partial"
    for folder in (dead, living):
        folder.mkdir()
        (folder / ALIVE).touch()
    with FileLock(living / ALIVE):
        sweep_dead(tmp_path)
        assert living.exists() and not dead.exists()


def write(store: Store, key: str, **about: str) -> None:
    with store.making(key):
        store.write(key, lambda path: path.write_bytes(b"result"), about)  # type: ignore[func-returns-value]


def test_the_store_lists_what_it_has_and_clears_what_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("aa11", "bb22"):
        write(store, key, pipeline="p", step="fit", plugin="retinakit:ln")
    long_ago = time.time() - 10 * 86400
    for path in [*store.folder("aa11").iterdir(), *store.folder("bb22").iterdir()]:
        os.utime(path, (long_ago, long_ago))
    assert store.has("bb22")  # which is a use
    assert {entry.key for entry in store.entries()} == {"aa11", "bb22"}
    number, freed = store.clear(5)
    assert number == 1 and freed > 0
    assert {entry.key for entry in store.entries()} == {"bb22"}
    assert not list((tmp_path / "locks").iterdir())


def test_a_result_that_is_a_folder_is_no_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "aa11")
    store.path("aa11").unlink()
    store.path("aa11").mkdir()
    assert not store.has("aa11")
    write(store, "aa11")
    assert store.has("aa11")


def test_torch_has_a_tasks_threads_where_the_task_imports_it() -> None:
    """A worker of dask starts with OMP_NUM_THREADS=1, and its sums would be other ones."""
    code = """
import sys
from retinakit.pipeline.execute import _limited_threads
assert "torch" not in sys.modules
with _limited_threads(2):
    import torch
    print(torch.get_num_threads())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout == "2\n", ended.stderr


@pytest.mark.parametrize("damage", ["[]", "3", "folder", "{", "[" * 10**5, "pipe"])
def test_a_damaged_description_of_a_result_is_no_result(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    write(store, "aa11")
    meta = store.folder("aa11") / "meta.json"
    if damage == "folder":
        meta.unlink()
        meta.mkdir()
    elif damage == "pipe":  # which nobody writes to
        meta.unlink()
        os.mkfifo(meta)
    else:
        meta.write_text(damage)
    assert not store.has("aa11")
    write(store, "aa11")
    assert store.has("aa11")


@pytest.mark.parametrize("damage", ["file", "link"])
def test_what_stands_in_the_place_of_a_result_gives_way(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    write(store, "aa11")
    shutil.rmtree(store.folder("aa11"))
    if damage == "file":
        store.folder("aa11").touch()
    else:
        store.folder("aa11").symlink_to(tmp_path / "nowhere")
    assert not store.has("aa11")
    write(store, "aa11")
    assert store.has("aa11")


def test_a_store_that_cannot_be_written_to_serves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Store(tmp_path), "aa11")
    genuine = Path.touch

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        if "unfinished" in path.parts:
            raise PermissionError(13, "Permission denied")
        genuine(path, *args, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    store = Store(tmp_path)
    assert store.has("aa11")
    with pytest.raises(UserError, match="cannot be written to"):
        write(store, "bb22")


def test_a_large_file_is_hashed_once_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retinakit.pipeline import hashes

    monkeypatch.setenv("RETINAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED", 10)
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    path = tmp_path / "movie.h5"
    path.write_bytes(b"a" * 100)
    first = file_hash(path)
    hashes._file_hash.cache_clear()
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert file_hash(path) == first
    monkeypatch.undo()
    path.write_bytes(b"b" * 100)
    assert file_hash(path) != first


def test_the_code_of_a_plugin_is_what_it_imports_too() -> None:
    ln = code_hash("retinakit_plugins.models.ln", "retinakit")
    assert ln == code_hash("retinakit_plugins.models.ln", "retinakit")
    assert ln != code_hash("retinakit_plugins.models.rectified_linear", "retinakit")


def test_a_value_on_the_command_line_is_one_in_the_file(
    arrays: None, command: Any, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(
        f"datasets:\n  {of('good')}\nmodels:\n  m: {{plugin: ols, data: good}}\n"
    )
    assert command("p.yaml", "--set", "models.m.with.lags=3").code == 0
    (folder,) = (tmp_path / "runs/pipeline").iterdir()
    assert "lags: 3" in (folder / "resolved.yaml").read_text()
    shutil.rmtree(folder)
    for change, message in (
        (
            "models.m.with.lags=none",
            "--set models.m.with.lags=none: models.m.with.lags: it must be",
        ),
        ("models.n.with.lags=3", "there is no step 'n'"),
        ("models.m.with.lags", "give a path and a value, PATH=VALUE"),
        ("models.m.with.lags=[", "--set models.m.with.lags=[: the value:1:2: not valid YAML"),
        ("models.m.with.lags=2001-99-99", "2001-99-99 is a date; put it in quotes"),
        ("models.m.with.lags=!!int x", "the value:1:1: 'x' cannot be read as integer"),
        ("models.m.with.lags=&a [*a]", "the alias *a is inside the value that it repeats"),
        ("models.m.with.lags=" + "[" * 500, "nested more than 50 deep"),
        ("models.m.with.lags=" + "9" * 5000, "--set models.m.with.lags=...: the value:1:1: '99999"),
    ):
        ended = command("p.yaml", "--set", change)
        assert ended.code == 2
        assert message in ended.err
