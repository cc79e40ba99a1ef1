"""The plugin contract: one pluggy hook per kind of plugin.

A distribution offers plugins by an entry point in the group `retinakit` that names a module with
hook implementations:

    from retinakit import ModelSpec, hookimpl

    @hookimpl
    def retinakit_models():
        return [ModelSpec(name="mine", target="my_package.mine:Mine", summary="My model.")]

Specs are plain data with a target written as text, so that listing plugins imports nothing heavy.
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
    """What the registry knows about a plugin before it imports it.

    Attributes:
        name: the name used in a pipeline.
        target: where the class is, as "package.module:Class".
        summary: one line for listings.
        api: the version of this contract that the plugin was written for.
    """

    kind: ClassVar[str]
    name: str
    target: str
    summary: str
    api: int = API_VERSION


class DatasetSpec(PluginSpec):
    """A dataset: its class derives from `retinakit.Dataset`."""

    kind = "dataset"


class ModelSpec(PluginSpec):
    """A model: its class derives from `retinakit.Model`."""

    kind = "model"


class AnalysisSpec(PluginSpec):
    """An analysis: its class derives from `retinakit.Analysis`."""

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
