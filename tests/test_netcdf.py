"""Our NetCDF files say the same to our reader, to xarray, to h5py and to NetCDF's own rules."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import netcdf
from retinakit.contracts.netcdf import read_netcdf, write_netcdf
from retinakit.testing.comparisons import difference_of


def datasets() -> dict[str, xr.Dataset]:
    grid = xr.Dataset(
        {"map": (("cell", "y", "x"), np.arange(12.0).reshape(2, 2, 3), {"units": "spikes"})},
        coords={"cell": ["ON", "Größe"], "lag_time": ("y", [0.0, 0.1])},
        attrs={"title": "µm", "sizes": [1, 2], "names": ["a", "b"], "rate": 30.0, "none": []},
    )
    return {
        "labels": grid,
        "no coordinates": xr.Dataset({"a": (("frame", "cell"), np.ones((3, 2), np.int8))}),
        "scalars": xr.Dataset({"a": 1.5, "text": "on", "flag": True}),
        "empty": xr.Dataset({"a": (("frame", "cell"), np.ones((0, 2)))}),
        "nothing": xr.Dataset(attrs={"a": 1}),
        "missing": xr.Dataset({"a": ("x", [np.nan, 1, np.inf]), "b": ("x", [True, False, True])}),
        "types": xr.Dataset(
            {k: ("x", np.arange(3).astype(k)) for k in ("u1", "i2", "u4", "i8", "f2", "f4", ">f8")}
        ),
        "times": xr.Dataset({"t": ("x", np.array(["2026-01-01"] * 2, "datetime64[ns]"))}),
        "square": xr.Dataset({"a": (("x", "y"), np.eye(3))}, coords={"x": [1, 2, 3]}),
        "of its dimension's name": xr.Dataset({"x": (("x", "y"), np.ones((2, 3)))}),
        "movie": xr.Dataset({"m": (("frame", "y", "x"), np.ones((5000, 4, 4), np.int8))}),
    }


@pytest.mark.parametrize("name", datasets())
def test_xarray_and_our_reader_see_what_was_written(name: str, tmp_path: Path) -> None:
    dataset, path = datasets()[name], tmp_path / "a.nc"
    write_netcdf(dataset, path)
    with xr.open_datatree(path, engine="h5netcdf") as opened:
        theirs = opened.load()
    written = xr.DataTree(dataset=netcdf.storable(dataset))
    assert difference_of(written, theirs) is None
    for load in (True, False):
        assert difference_of(written, read_netcdf(path, load=load)) is None


def test_groups_share_the_dimensions_of_those_above(tmp_path: Path) -> None:
    cells = xr.Dataset(coords={"cell": [3, 5]})
    tree = xr.DataTree.from_dict(
        {
            "/": cells,
            "/fit": xr.Dataset({"gain": ("cell", [1.0, 2.0])}),
            "/fit/more": xr.Dataset({"field": (("cell", "x"), np.ones((2, 3)))}),
        }
    )
    path = tmp_path / "a.nc"
    write_netcdf(tree, path)
    with h5py.File(path) as file:
        assert "cell" not in file["fit"]
        assert file["fit/gain"].dims[0][0] == file["cell"]
    with xr.open_datatree(path, engine="h5netcdf") as theirs:
        assert difference_of(tree, theirs.load()) is None
    assert difference_of(tree, read_netcdf(path)) is None
    write_netcdf(tree["fit"], path)  # a branch is written as a file of its own
    assert list(read_netcdf(path).children) == ["more"]


@pytest.mark.parametrize("labels", [[3, 4], [3, 4, 5]])
def test_a_group_may_label_a_dimension_that_the_group_above_does_not(
    labels: list[int], tmp_path: Path
) -> None:
    below = xr.Dataset({"gain": ("cell", np.ones(len(labels)))}, coords={"cell": labels})
    above = xr.Dataset({"spikes": ("cell" if len(labels) == 2 else "frame", [1, 2])})
    tree = xr.DataTree.from_dict({"/": above, "/fit": below})
    write_netcdf(tree, tmp_path / "a.nc")
    with xr.open_datatree(tmp_path / "a.nc", engine="h5netcdf") as theirs:
        assert difference_of(tree, theirs.load()) is None
    assert difference_of(tree, read_netcdf(tmp_path / "a.nc")) is None


def test_a_large_variable_stays_in_the_file_until_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netcdf, "BLOCK", 1000)
    monkeypatch.setattr(netcdf, "EAGER", 1000)
    monkeypatch.setattr(netcdf, "CHUNK", 512)
    movie = np.random.default_rng(0).integers(-100, 100, (5000, 4, 5), np.int8)
    dataset = xr.Dataset(
        {"stimulus": (("frame", "y", "x"), movie), "rate": ("frame", movie[:, 0, 0] / 7)}
    )
    path = tmp_path / "a.nc"
    write_netcdf(dataset, path)
    stimulus = read_netcdf(path)["stimulus"]
    assert not stimulus.variable._in_memory
    assert stimulus.encoding["preferred_chunks"] == {"frame": 25, "y": 4, "x": 5}
    np.testing.assert_array_equal(stimulus[40:90, ::2, [0, 3]], movie[40:90, ::2, [0, 3]])
    np.testing.assert_array_equal(stimulus, movie)
    # What is lazy can be written elsewhere, and its own file replaced, for nothing is left open.
    write_netcdf(read_netcdf(path), tmp_path / "b.nc")
    write_netcdf(xr.Dataset(), path)
    assert difference_of(xr.DataTree(dataset=dataset), read_netcdf(tmp_path / "b.nc")) is None


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_what_is_no_file_of_ours_is_an_oserror(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=r"a\.nc|file"):
        read_netcdf(path)


def test_objects_are_refused(tmp_path: Path) -> None:
    thing: Any = np.array([object(), {}], dtype=object)
    with pytest.raises((TypeError, ValueError)):
        write_netcdf(xr.Dataset({"a": ("x", thing)}), tmp_path / "a.nc")
