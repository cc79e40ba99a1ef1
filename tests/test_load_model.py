"""A fitted model's file that is damaged is refused with a sentence, whatever is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from retinakit import UserError, load_model
from retinakit.testing import small_recording
from retinakit_plugins.models.ln import LN
from retinakit_plugins.models.regression import OLS


@pytest.fixture(scope="module", params=[LN, OLS])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a fitted model, with the name of its plugin as a pipeline writes it."""
    model = request.param({"lags": 3})
    model.fit(small_recording(frames=300, cells=2, seed=0))
    path: Path = tmp_path_factory.mktemp("saved") / "model.nc"
    model.save(path)
    with h5py.File(path, "a") as file:
        file.attrs["retinakit_plugin"] = request.param.__name__.lower()
    assert isinstance(load_model(path), request.param)
    return path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def text(path: Path) -> None:
    path.write_text("a model")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def changed(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            change(file)

    return damage


def without_largest_array(file: h5py.File) -> None:
    arrays: list[str] = []
    file["state"].visititems(
        lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None
    )
    del file["state"][max(arrays, key=lambda name: file["state"][name].size)]


DAMAGES = [truncated, text, empty, missing, folder, changed(without_largest_array)]
DAMAGES += [changed(lambda file, group=group: file.pop(group)) for group in ("state", "parameters")]
for attribute in ("plugin", "class", "config", "seed"):
    name = f"retinakit_{attribute}"
    DAMAGES.append(changed(lambda file, name=name: file.attrs.pop(name)))
    DAMAGES.append(changed(lambda file, name=name: file.attrs.create(name, "{")))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_model(
    damage: Callable[[Path], None], saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.nc"
    path.write_bytes(saved.read_bytes())
    damage(path)
    with pytest.raises(UserError):
        load_model(path)
