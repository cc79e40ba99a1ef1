"""The plugin contract: one pluggy hook per kind of plugin.

A distribution offers plugins through an entry point in the group `retinakit`. It names a module
with hook implementations:

    from retinakit import ModelSpec, hookimpl

    @hookimpl
    def retinakit_models():
        return [ModelSpec(name="mine", target="my_package.mine:Mine", summary="My model.")]

A spec names the class as text, so that listing plugins does not import the classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import pluggy

GROUP = "retinakit"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """The description of a plugin, available without importing it.

    Attributes:
        kind: "dataset", "model" or "analysis".
        name: the name in a pipeline file.
        target: the class, as "package.module:Class".
        summary: one line for listings.
        api: the version of the plugin contract for which the plugin was written.

    Example:
        >>> spec = ModelSpec(name="mine", target="my_package.mine:Mine", summary="My model.")
        >>> isinstance(spec, PluginSpec), spec.api
        (True, 1)
    """

    kind: ClassVar[str]
    name: str
    target: str
    summary: str
    api: int = API_VERSION


class DatasetSpec(PluginSpec):
    """Describes a dataset, a class that derives from `retinakit.Dataset`.

    Example:
        >>> spec = DatasetSpec(name="mine", target="my_package.mine:Mine", summary="My dataset.")
        >>> spec.kind
        'dataset'
    """

    kind = "dataset"


class ModelSpec(PluginSpec):
    """Describes a model, a class that derives from `retinakit.Model`.

    Example:
        >>> spec = ModelSpec(name="mine", target="my_package.mine:Mine", summary="My model.")
        >>> spec.kind
        'model'
    """

    kind = "model"


class AnalysisSpec(PluginSpec):
    """Describes an analysis, a class that derives from `retinakit.Analysis`.

    Example:
        >>> spec = AnalysisSpec(name="mine", target="my_package.mine:Mine", summary="My analysis.")
        >>> spec.kind
        'analysis'
    """

    kind = "analysis"


@hookspec
def retinakit_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """The datasets that a distribution offers."""


@hookspec
def retinakit_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """The models that a distribution offers."""


@hookspec
def retinakit_analyses() -> Iterable[AnalysisSpec]:  # type: ignore[empty-body]
    """The analyses that a distribution offers."""


HOOKS: dict[str, type[PluginSpec]] = {
    "retinakit_datasets": DatasetSpec,
    "retinakit_models": ModelSpec,
    "retinakit_analyses": AnalysisSpec,
}
KINDS = tuple(spec.kind for spec in HOOKS.values())
