"""Finds plugins through entry points, without importing what they point to.

Each entry point is loaded alone and guarded: a distribution that breaks is listed with its reason
and harms only the pipelines that name it.
"""

import importlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

import pluggy

from retinakit.contracts.errors import UserError, nearest
from retinakit.registry import hookspecs
from retinakit.registry.hookspecs import API_VERSION, GROUP, HOOKS, KINDS, PluginSpec

BUILTIN_DISTRIBUTION = "retinakit"
DISABLED_VARIABLE = "RETINAKIT_DISABLED_PLUGINS"


@dataclass(frozen=True)
class Entry:
    """A plugin, or a distribution whose plugins could not be listed (`spec` is None then).

    `status` is "ok", "conflict" (another distribution offers the same name), "disabled" or
    "failed"; `reason` explains the last three.
    """

    spec: PluginSpec | None
    distribution: str
    version: str
    status: str = "ok"
    reason: str = ""

    @property
    def full_name(self) -> str:
        """`distribution:name`, which is unambiguous."""
        return f"{self.distribution}:{self.spec.name if self.spec else '?'}"


class Registry:
    """The plugins that are installed.

    Args:
        builtin_only: leave out every distribution but retinakit itself (`--no-plugins`).
        disabled: distributions, `distribution:name`s or names to leave out; by default those of
            the environment variable RETINAKIT_DISABLED_PLUGINS, separated by commas.
    """

    def __init__(self, *, builtin_only: bool = False, disabled: Iterable[str] | None = None):
        if disabled is None:
            disabled = os.environ.get(DISABLED_VARIABLE, "").split(",")
        self.disabled = frozenset(_normal(item) for item in disabled if item.strip())
        self.builtin_only = builtin_only

    @cached_property
    def entries(self) -> list[Entry]:
        """Every plugin found, in the order dataset, model, analysis, then by name."""
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
                raise ValueError("it offers the same name twice")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
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
            reason = f"written for plugin contract {spec.api}, this is {API_VERSION}"
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
        """The names of the usable plugins of a kind."""
        return sorted(
            {
                e.spec.name
                for e in self.entries
                if e.spec and e.spec.kind == kind and e.status == "ok"
            }
        )

    def find(self, kind: str, name: str) -> Entry:
        """The plugin of that kind called `name` or `distribution:name`.

        Raises:
            UserError: if there is none, it is disabled or failed, or two distributions offer it.
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
        """Imports the class of a plugin.

        Raises:
            UserError: as `find`, and if the class cannot be imported.
        """
        return load_entry(self.find(kind, name))


def _normal(name: str) -> str:
    """A name as the package index compares it: case and the kind of dash do not matter."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def load_entry(entry: Entry) -> type:
    """Imports the class that an entry of the registry points to.

    Raises:
        UserError: with the reason if it cannot be imported or is not of its kind.
    """
    assert entry.spec is not None
    module_name, _, class_name = entry.spec.target.partition(":")
    try:
        loaded: type = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise UserError(
            f"{entry.spec.kind} plugin '{entry.full_name}' cannot be imported from "
            f"{entry.spec.target} ({type(error).__name__}: {error})"
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
