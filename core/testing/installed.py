"""The installed plugins as parameters of a test."""

from typing import Any

from retinakit.contracts.errors import UserError
from retinakit.registry.find import Registry
from retinakit.registry.hookspecs import KINDS


def registered(kind: str, *, distribution: str | None = None) -> list[Any]:
    """The installed plugins, for `pytest.mark.parametrize`.

    Args:
        kind: "dataset", "model" or "analysis".
        distribution: the name of a distribution, to list only its plugins.

    Returns:
        A pytest parameter set for each plugin, with the id `distribution:name`. Its value is the
        entry of the registry; the class is imported later, by the check or by
        `retinakit.registry.load_entry`.

    Raises:
        UserError: if the kind is unknown, or the distribution is not installed, offers no plugins
            or could not be imported.

    Example:
        >>> models = registered("model", distribution="retinakit")
        >>> "retinakit:ln" in [parameters.id for parameters in models]
        True
    """
    import pytest

    if kind not in KINDS:
        raise UserError(f"there is no kind of plugin {kind!r}; known: {', '.join(KINDS)}")
    entries = Registry().entries
    if distribution is not None:
        entries = [entry for entry in entries if entry.distribution == distribution]
        # Otherwise a distribution that cannot be imported would pass without any test.
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
