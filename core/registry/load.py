"""Reads a fitted model with the plugin that made it."""

from pathlib import Path
from typing import Any

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model, reading_model
from retinakit.contracts.netcdf import read_netcdf
from retinakit.registry.find import Registry


def load_model(path: Path | str) -> Model:
    """Reads a fitted model that a pipeline wrote, with the plugin that made it.

    Raises:
        UserError: if the file is damaged or does not say which plugin made it, or that plugin is
            not installed.
    """
    with reading_model(path):
        plugin = read_netcdf(path).attrs.get("retinakit_plugin")
    if plugin is None:
        raise UserError(
            f"{path} does not name the plugin that made it; read it with that class's own load()"
        )
    cls: Any = Registry().load("model", plugin)
    model: Model = cls.load(path)
    return model
