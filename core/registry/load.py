"""Loading a fitted model with the plugin that it was fitted with."""

from pathlib import Path
from typing import Any

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model, reading_model
from retinakit.contracts.netcdf import read_netcdf
from retinakit.registry.find import Registry


def load_model(path: Path | str) -> Model:
    """Loads a fitted model that was written by a pipeline. The file names the plugin to use.

    Args:
        path: the NetCDF-4 file of the model, such as `runs/NAME/DATE/models/ln.nc`.

    Raises:
        UserError: if the file does not exist, is damaged or does not name its plugin, or if that
            plugin is not installed.

    Example:
        >>> import tempfile, h5py
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.regression import OLS
        >>> model = OLS.with_options(lags=3)
        >>> _ = model.fit(small_recording())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ols.nc")
        ...     model.save(path)
        ...     with h5py.File(path, "a") as file:
        ...         file.attrs["retinakit_plugin"] = "ols"  # written by a pipeline
        ...     load_model(path)
        OLS(lags=3, seed=0)
    """
    with reading_model(path):
        plugin = read_netcdf(path).attrs.get("retinakit_plugin")
    if plugin is None:
        raise UserError(
            f"{path} does not name the plugin that wrote it; read it with the method load() of "
            "the model's class"
        )
    cls: Any = Registry().load("model", plugin)
    model: Model = cls.load(path)
    return model
