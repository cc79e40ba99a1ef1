"""Options of plugins: frozen pydantic models that refuse what they do not know."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


class Config(BaseModel):
    """Base of every plugin's options. Each field has a default and a description.

    No number is infinite or NaN, also in a list or a mapping of numbers.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def _from_pipeline_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    try:
        path = path.expanduser()
        return (Path(folder) / path).resolve() if folder else path
    except (OSError, RuntimeError) as error:  # an unknown ~user, links in a circle
        raise ValueError(f"the path leads nowhere: {error}") from None


InputPath = Annotated[Path, AfterValidator(_from_pipeline_folder)]
"""A path in a pipeline, relative to the folder of the pipeline file."""
