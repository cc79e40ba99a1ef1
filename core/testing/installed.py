"""The installed plugins, for the parameters of a test."""

from typing import Any

from retinakit.contracts.errors import UserError
from retinakit.registry.find import Registry
from retinakit.registry.hookspecs import KINDS


def registered(kind: str, *, distribution: str | None = None) -> list[Any]:
    """The plugins that are installed, for `pytest.mark.parametrize`.

    Args:
        kind: "dataset", "model" or "analysis".
        distribution: only what this distribution offers.

    Returns:
        A pytest param for each, with the id `distribution:name`. Its value is the registry's entry;
        the class is not imported before the check, or `retinakit.registry.load_entry`.

    Raises:
        UserError: if the distribution that was asked for could not be read, or offers nothing.
    """
    import pytest

    if kind not in KINDS:
        raise UserError(f"there is no kind of plugin {kind!r}; known: {', '.join(KINDS)}")
    entries = Registry().entries
    if distribution is not None:
        entries = [entry for entry in entries if entry.distribution == distribution]
        # Without this, a distribution that breaks would pass its tests by having none.
        for entry in entries:
            if entry.status == "failed":
                raise UserError(f"{entry.full_name} cannot be tested: {entry.reason}")
        if not entries:
            raise UserError(f"no distribution {distribution!r} with plugins is installed")
    return [
        pytest.param(entry, id=entry.full_name)
        for entry in entries
        if entry.spec and entry.spec.kind == kind and entry.status in ("ok", "conflict")
    ]
