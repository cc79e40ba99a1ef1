"""The common base of datasets, models and analyses: options and a seed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from retinakit.contracts.config import Config as BaseConfig


class Plugin:
    """A configured dataset, model or analysis.

    Args:
        config: the options, as a `Config` of the class or a mapping; None for the defaults.
        seed: of all random numbers.

    Raises:
        pydantic.ValidationError: if an option is unknown or of the wrong type.

    Attributes:
        Config: the class of the options.
        quick: options with which the plugin runs in seconds, for the checks of
            `retinakit.testing`.

    Example:
        >>> from pydantic import Field
        >>> class Crop(Plugin):
        ...     class Config(BaseConfig):
        ...         size: int = Field(8, description="Side of the field in pixels.")
        >>> Crop({"size": 4}, seed=1)
        Crop(size=4, seed=1)
    """

    Config: ClassVar[type[BaseConfig]] = BaseConfig
    quick: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: BaseConfig | Mapping[str, Any] | None = None, *, seed: int = 0):
        self.config: Any = self.Config.model_validate({} if config is None else config)
        self.seed = seed

    @classmethod
    def with_options(cls, *, seed: int = 0, **options: Any) -> Self:
        """Makes the plugin with its options given as keyword arguments.

        Args:
            seed: of all random numbers.
            options: of the class `Config`.

        Raises:
            pydantic.ValidationError: if an option is unknown or of the wrong type.

        Example:
            >>> Plugin.with_options(seed=3).seed
            3
        """
        return cls(options, seed=seed)

    def files(self) -> list[Path]:
        """The input files. The result is computed again when their contents change."""
        return []

    def __repr__(self) -> str:
        changed = self.config.model_dump(exclude_defaults=True)
        options = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"{type(self).__name__}({options}, seed={self.seed})"
