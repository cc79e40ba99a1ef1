"""Reads a fitted model with the plugin that made it."""

from pathlib import Path
from typing import Any

import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import ENGINE, Model, reading_model
from retinakit.registry.find import Registry


def load_model(path: Path | str) -> Model:
    """Reads a fitted model that a pipeline wrote, with the plugin that made it.

    Raises:
        UserError: if the file is damaged or does not say which plugin made it, or that plugin is
            not installed.
    """
    with reading_model(path), xr.open_datatree(Path(path), engine=ENGINE) as tree:
        plugin = tree.attrs.get("retinakit_plugin")
    if plugin is None:
        raise UserError(
            f"{path} does not name the plugin that made it; read it with that class's own load()"
        )
    cls: Any = Registry().load("model", plugin)
    model: Model = cls.load(path)
    return model
