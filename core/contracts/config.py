"""Options of plugins: frozen pydantic models that reject unknown options."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


class Config(BaseModel):
    """Base class of the options of a plugin. Each field has a default and a description.

    Numbers must be finite, in lists and mappings too.

    Raises:
        pydantic.ValidationError: if an option is unknown, of the wrong type or out of range.

    Example:
        >>> from pydantic import Field
        >>> class Options(Config):
        ...     lags: int = Field(20, ge=1, description="Frames of history.")
        >>> Options(lags=5)
        Options(lags=5)
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def _from_pipeline_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    try:
        path = path.expanduser()
        return (Path(folder) / path).resolve() if folder else path
    except (OSError, RuntimeError) as error:  # an unknown ~user, circular links
        raise ValueError(f"the path cannot be resolved: {error}") from None


InputPath = Annotated[Path, AfterValidator(_from_pipeline_folder)]
"""The type of an option that is a path, relative to the folder of the pipeline file."""
