"""What datasets, models and analyses have in common: options and a seed."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from retinakit.contracts.config import Config as BaseConfig


class Plugin:
    """A configured dataset, model or analysis.

    Args:
        config: the options, as a `Config` of the class or a mapping; None for the defaults.
        seed: fixes everything random.

    Raises:
        pydantic.ValidationError: if an option is unknown or of the wrong type.

    Attributes:
        quick: options that make the plugin small, for the checks of `retinakit.testing`.
    """

    Config: ClassVar[type[BaseConfig]] = BaseConfig
    quick: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: BaseConfig | Mapping[str, Any] | None = None, *, seed: int = 0):
        self.config: Any = self.Config.model_validate({} if config is None else config)
        self.seed = seed

    @classmethod
    def with_options(cls, *, seed: int = 0, **options: Any) -> Self:
        """The plugin with options given by keyword, as one writes it in a notebook."""
        return cls(options, seed=seed)

    def __repr__(self) -> str:
        changed = self.config.model_dump(exclude_defaults=True)
        options = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"{type(self).__name__}({options}, seed={self.seed})"
