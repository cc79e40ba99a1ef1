"""Arrays of users' files: what is followed, what is refused, and how axes lie."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from retinakit import UserError
from retinakit.contracts import find_array
from retinakit_plugins.datasets.hdf5 import HDF5
from retinakit_plugins.models.ln import LN

MOVIE = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (300, 5, 5))
COUNTS = np.random.default_rng(1).poisson(1.0, (300, 2))


def write(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def values(path: Path, name: str = "spikes") -> Any:
    return find_array(path, name).get_duck_array()


def virtual(path: Path, source: str) -> Path:
    layout = h5py.VirtualLayout(COUNTS.shape, COUNTS.dtype)
    layout[:] = h5py.VirtualSource(source, "spikes", COUNTS.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("spikes", layout)
    return path


def external_storage(path: Path, source: str) -> Path:
    with h5py.File(path, "w") as file:
        form = {"dtype": COUNTS.dtype, "external": [(source, 0, COUNTS.nbytes)]}
        file.create_dataset("spikes", COUNTS.shape, **form)
    return path


def external_link(path: Path, source: str) -> Path:
    return write(path, spikes=h5py.ExternalLink(source, "spikes"))


@pytest.mark.parametrize("kind", [virtual, external_storage, external_link])
def test_what_lies_in_another_file_is_read_in_its_own_folder_only(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("lab/parts", "elsewhere"):
        if kind is external_storage:
            (tmp_path / folder).mkdir(parents=True)
            COUNTS.tofile(tmp_path / folder / "other")
        else:
            write(tmp_path / folder / "other", spikes=COUNTS)
    (tmp_path / "lab/link").symlink_to(tmp_path / "elsewhere/other")
    monkeypatch.chdir(tmp_path / "elsewhere")  # where HDF5 itself would look too

    path = kind(tmp_path / "lab/mine.h5", "parts/other")
    array = find_array(path, "spikes")
    assert np.array_equal(array.get_duck_array(), COUNTS)
    assert array.files[:1] == (path,) and tmp_path / "lab/parts/other" in array.files
    for place in ("../elsewhere/other", str(tmp_path / "elsewhere/other"), "link"):
        with pytest.raises(UserError, match="outside the folder of the file"):
            find_array(kind(path, place), "spikes")
    with pytest.raises(UserError, match="there is no such file in its folder"):
        find_array(kind(path, "other"), "spikes")


def test_another_file_that_changes_is_another_recording(tmp_path: Path) -> None:
    write(tmp_path / "other.h5", spikes=COUNTS)
    path = write(
        tmp_path / "mine.h5", stimulus=MOVIE, spikes=h5py.ExternalLink("other.h5", "spikes")
    )
    dataset = HDF5({"path": path, "response": "spikes"})
    assert dataset.files() == [path, tmp_path / "other.h5"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (h5py.SoftLink("/spikes"), "'spikes' is reached through more than 100 links, which"),
        (h5py.SoftLink("/nothing"), "there is no array 'nothing'; known: stimulus"),
        (h5py.ExternalLink("mine.h5", "/spikes"), "is reached through more than 100 links"),
        (np.full((300, 2), b"a"), r"'spikes' is of type \|S1; convert it to numbers"),
        (np.zeros((300, 2), "c8"), "'spikes' is of type complex64; convert it to numbers"),
        (h5py.Empty("f4"), "'spikes' has no shape and no values"),
        (np.dtype("i4"), "there is no array 'spikes'; known: stimulus"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_before_anything_runs(
    tmp_path: Path, content: Any, problem: str
) -> None:
    path = write(tmp_path / "mine.h5", stimulus=MOVIE, spikes=content)
    with pytest.raises(UserError, match=problem):
        HDF5({"path": path, "response": "spikes"}).files()


@pytest.mark.parametrize("chunks", [None, (1000, 1)])
def test_an_array_that_is_declared_and_not_written_is_refused(tmp_path: Path, chunks: Any) -> None:
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.create_dataset("spikes", (10**12, 1), "i1", chunks=chunks)
        if chunks:
            file["spikes"][:2000] = 1
    with pytest.raises(UserError, match="not all of it was written"):
        find_array(tmp_path / "mine.h5", "spikes")


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.h5", **{"a/b/spikes": COUNTS, "a/here": h5py.SoftLink("b/spikes")}
    )
    with h5py.File(path, "a") as file:
        file["there"] = h5py.SoftLink("/a")
    assert np.array_equal(values(path, "/there/./here"), COUNTS)


@pytest.mark.parametrize("dtype", [">i4", ">f8", "f2", "longdouble"])
def test_numbers_of_any_machine_are_read(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "mine.h5", stimulus=MOVIE.astype(dtype), spikes=COUNTS.astype(dtype))
    train = HDF5({"path": path, "response": "spikes"}).load()["train"]
    for name, truth in (("stimulus", MOVIE), ("response", COUNTS)):
        assert train[name].dtype.isnative
        assert np.array_equal(train[name], truth[: train.sizes["frame"]])
    assert train["response"].dtype != np.float16  # whose sums overflow
    assert train["response"].dtype.itemsize <= 8  # Numba has no larger numbers


@pytest.mark.parametrize("frame_first", [True, False])
@pytest.mark.parametrize("version", ["5", "7.3", "7.3 by its name"])
def test_a_square_movie_of_matlab_is_not_transposed(
    tmp_path: Path, version: str, frame_first: bool
) -> None:
    shown = MOVIE if frame_first else MOVIE.transpose(1, 2, 0)  # (y, x, frame) in MATLAB
    path = tmp_path / ("movie.h5" if version == "7.3" else "movie.mat")
    if version == "5":
        scipy.io.savemat(path, {"stimulus": shown, "response": COUNTS})
    else:
        with h5py.File(path, "w", userblock_size=512 if version == "7.3" else 0) as file:
            file["stimulus"], file["response"] = shown.T, COUNTS.T
        if version == "7.3":
            with path.open("r+b") as raw:
                raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    train = HDF5({"path": path}).load()["train"]
    length = train.sizes["frame"]
    assert np.array_equal(train["stimulus"], MOVIE[:length])
    assert np.array_equal(train["response"], COUNTS[:length])


def test_a_movie_of_matlab_that_could_lie_either_way_asks(tmp_path: Path) -> None:
    path = tmp_path / "movie.mat"
    scipy.io.savemat(path, {"stimulus": MOVIE[:5], "response": COUNTS[:5]})
    with pytest.raises(UserError, match="give the order in stimulus_dims"):
        HDF5({"path": path}).files()


def test_images_are_converted_to_contrast_and_a_warning_asks_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (500, 6, 6), np.uint8)
    spikes = random.poisson(np.exp((images[:, 2, 3] - 127.5) / 74))[:, None]
    path = write(tmp_path / "images.h5", stimulus=images, response=spikes)
    HDF5({"path": path}).load()
    assert "set contrast: true" in caplog.text
    caplog.clear()
    recording = HDF5({"path": path, "contrast": True}).load()
    assert not caplog.text
    train = recording["train"]["stimulus"].values
    assert (train.dtype, abs(train.mean()) < 1e-5, abs(train.std() - 1) < 1e-5) == (
        np.float32,
        True,
        True,
    )
    model = LN({"lags": 1})
    model.fit(recording)
    kernel = model.parameters()["kernel"].values[0, 0]
    assert np.unravel_index(kernel.argmax(), kernel.shape) == (2, 3)
    flat = write(tmp_path / "flat.h5", stimulus=np.ones_like(images), response=spikes)
    with pytest.raises(UserError, match="constant"):
        HDF5({"path": flat, "contrast": True}).load()
