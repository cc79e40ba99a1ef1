"""Finds plugins through entry points, without importing the classes that they name.

Entry points are loaded one by one. A distribution that cannot be imported is listed with the
reason, and only pipelines that use its plugins fail.
"""

import importlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

import pluggy

from retinakit.contracts.errors import UserError, describe, nearest
from retinakit.registry import hookspecs
from retinakit.registry.hookspecs import API_VERSION, GROUP, HOOKS, KINDS, PluginSpec

BUILTIN_DISTRIBUTION = "retinakit"
DISABLED_VARIABLE = "RETINAKIT_DISABLED_PLUGINS"


@dataclass(frozen=True)
class Entry:
    """A plugin, or a distribution whose plugins could not be listed.

    Attributes:
        spec: of the plugin; None if the distribution could not be imported or is disabled.
        distribution, version: of the distribution that offers it.
        status: "ok", "conflict" (another distribution offers the same name), "disabled" or
            "failed".
        reason: the reason for a status other than "ok".

    Example:
        >>> Registry(builtin_only=True).find("model", "ln").full_name
        'retinakit:ln'
    """

    spec: PluginSpec | None
    distribution: str
    version: str
    status: str = "ok"
    reason: str = ""

    @property
    def full_name(self) -> str:
        """`distribution:name`, which is unique."""
        return f"{self.distribution}:{self.spec.name if self.spec else '?'}"


class Registry:
    """The installed plugins.

    Args:
        builtin_only: list only the plugins of retinakit itself (`--no-plugins`).
        disabled: names of distributions or plugins, or `distribution:name`, to exclude; by default
            those in the environment variable RETINAKIT_DISABLED_PLUGINS, separated by commas.

    Example:
        >>> registry = Registry(builtin_only=True)
        >>> "cnn" in registry.names("model")
        True
        >>> registry.load("model", "cnn").__name__
        'CNN'
    """

    def __init__(self, *, builtin_only: bool = False, disabled: Iterable[str] | None = None):
        if disabled is None:
            disabled = os.environ.get(DISABLED_VARIABLE, "").split(",")
        self.disabled = frozenset(_normal(item) for item in disabled if item.strip())
        self.builtin_only = builtin_only

    @cached_property
    def entries(self) -> list[Entry]:
        """All plugins, sorted by kind (dataset, model, analysis) and name."""
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        found: list[Entry] = []
        for point in entry_points(group=GROUP):
            distribution = point.dist.name if point.dist else "unknown"
            if self.builtin_only and distribution != BUILTIN_DISTRIBUTION:
                continue
            found += self._from_entry_point(manager, point, distribution)
        found = self._mark_conflicts(found)
        kinds = [*KINDS, ""]
        return sorted(
            found,
            key=lambda e: (
                kinds.index(e.spec.kind if e.spec else ""),
                e.spec.name if e.spec else "",
                e.distribution,
            ),
        )

    def _from_entry_point(
        self, manager: pluggy.PluginManager, point: EntryPoint, distribution: str
    ) -> list[Entry]:
        version = point.dist.version if point.dist else "?"
        if _normal(distribution) in self.disabled:
            reason = f"disabled by {DISABLED_VARIABLE}"
            return [Entry(None, distribution, version, "disabled", reason)]
        entries: list[Entry] = []
        try:
            module = point.load()
            name = f"{distribution}:{point.name}"
            manager.register(module, name)
            manager.check_pending()
            for hook, spec_type in HOOKS.items():
                for implementation in getattr(manager.hook, hook).get_hookimpls():
                    if implementation.plugin_name == name:
                        for spec in implementation.function():
                            entries.append(self._entry(spec, spec_type, distribution, version))
            names = [(e.spec.kind, e.spec.name) for e in entries if e.spec]
            if len(set(names)) < len(names):
                raise ValueError("it offers two plugins of the same name")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may raise anything
            reason = describe(error)
            entries = [Entry(None, distribution, version, "failed", reason)]
            if manager.has_plugin(f"{distribution}:{point.name}"):
                manager.unregister(name=f"{distribution}:{point.name}")
        return entries

    def _entry(
        self, spec: object, spec_type: type[PluginSpec], distribution: str, version: str
    ) -> Entry:
        if not isinstance(spec, spec_type):
            raise TypeError(f"a {spec_type.__name__} was expected, got {spec!r}")
        if spec.api != API_VERSION:
            reason = (
                f"written for version {spec.api} of the plugin contract, the installed retinakit "
                f"has version {API_VERSION}"
            )
            return Entry(spec, distribution, version, "failed", reason)
        if self.disabled & {_normal(spec.name), _normal(f"{distribution}:{spec.name}")}:
            reason = f"disabled by {DISABLED_VARIABLE}"
            return Entry(spec, distribution, version, "disabled", reason)
        return Entry(spec, distribution, version)

    @staticmethod
    def _mark_conflicts(entries: list[Entry]) -> list[Entry]:
        offers: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            if entry.spec and entry.status == "ok":
                offers.setdefault((entry.spec.kind, entry.spec.name), []).append(entry)
        marked = []
        for entry in entries:
            same = offers.get((entry.spec.kind, entry.spec.name), []) if entry.spec else []
            if entry in same and len(same) > 1:
                others = ", ".join(e.full_name for e in same if e is not entry)
                reason = f"also offered as {others}"
                entry = Entry(entry.spec, entry.distribution, entry.version, "conflict", reason)
            marked.append(entry)
        return marked

    def names(self, kind: str) -> list[str]:
        """The names of the plugins of a kind that can be used, sorted.

        Args:
            kind: "dataset", "model" or "analysis".
        """
        return sorted(
            {
                e.spec.name
                for e in self.entries
                if e.spec and e.spec.kind == kind and e.status == "ok"
            }
        )

    def find(self, kind: str, name: str) -> Entry:
        """Finds a plugin by its name.

        Args:
            kind: "dataset", "model" or "analysis".
            name: `name` or `distribution:name`.

        Raises:
            UserError: if there is no such plugin, it is disabled or failed, or two distributions
                offer it.
        """
        same = [
            e
            for e in self.entries
            if e.spec and e.spec.kind == kind and name in (e.spec.name, e.full_name)
        ]
        usable = [e for e in same if e.status in ("ok", "conflict")]
        if len(usable) == 1:
            return usable[0]
        if usable:
            choices = " or ".join(f"'{e.full_name}'" for e in usable)
            raise UserError(
                f"{kind} plugin {name!r} is offered by {len(usable)} distributions; write {choices}"
            )
        if same:
            raise UserError(f"{kind} plugin {name!r} cannot be used: {same[0].reason}")
        known = self.names(kind)
        known += [
            e.full_name
            for e in self.entries
            if e.spec and e.spec.kind == kind and e.status == "conflict"
        ]
        message = f"there is no {kind} plugin {name!r}; {nearest(name, known)}"
        failed = [f"{e.distribution} ({e.reason})" for e in self.entries if e.spec is None]
        if failed:
            message += "; not listed: " + ", ".join(failed)
        raise UserError(message)

    def load(self, kind: str, name: str) -> type:
        """Finds a plugin and imports its class.

        Args:
            kind, name: as for `find`.

        Raises:
            UserError: as `find` does, or if the class cannot be imported.
        """
        return load_entry(self.find(kind, name))


def _normal(name: str) -> str:
    """A normalised name (PEP 503): lower case, with `-` for any run of `-`, `_` and `.`."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def load_entry(entry: Entry) -> type:
    """Imports the class of an entry of the registry.

    Args:
        entry: with a spec.

    Raises:
        UserError: if the class cannot be imported or does not derive from the base class of its
            kind.

    Example:
        >>> load_entry(Registry(builtin_only=True).find("analysis", "sta")).__name__
        'STA'
    """
    assert entry.spec is not None
    module_name, _, class_name = entry.spec.target.partition(":")
    try:
        loaded: type = getattr(importlib.import_module(module_name), class_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything
        raise UserError(
            f"{entry.spec.kind} plugin '{entry.full_name}' cannot be imported from "
            f"{entry.spec.target} ({describe(error)})"
        ) from error
    bases = {"dataset": "Dataset", "model": "Model", "analysis": "Analysis"}
    import retinakit

    base = getattr(retinakit, bases[entry.spec.kind])
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(
            f"{entry.spec.kind} plugin '{entry.full_name}' is not a "
            f"retinakit.{base.__name__}: {entry.spec.target}"
        )
    return loaded
