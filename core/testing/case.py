"""Running the checks of a plugin and reporting all failures together."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retinakit.contracts.plugin import Plugin
from retinakit.registry.find import Entry, load_entry


@dataclass
class Case:
    """A plugin under test."""

    plugin: Any

    @property
    def name(self) -> str:
        return type(self.plugin).__name__

    def fresh(self, **changed: Any) -> Any:
        """A new instance with the same options and seed, without shared state."""
        plugin: Plugin = self.plugin
        return type(plugin)(**{"config": plugin.config, "seed": plugin.seed} | changed)


def instance_of(plugin: Any) -> Any:
    """The instance to check: a class or an entry of the registry gets its `quick` options."""
    if isinstance(plugin, Entry):
        plugin = load_entry(plugin)
    if isinstance(plugin, type) and issubclass(plugin, Plugin):
        missing = sorted(getattr(plugin, "__abstractmethods__", ()))
        demand(not missing, f"{plugin.__name__} must define {', '.join(missing)}")
        return plugin(plugin.quick)
    return plugin


def run_checks(
    checks: Iterable[Callable[[Any], None]],
    case: "Case",
    expected_failures: Mapping[str, str] | None,
) -> None:
    """Runs all checks.

    Raises:
        AssertionError: if checks fail, or pass against expectation.
        ValueError: if `expected_failures` names an unknown check.
    """
    by_name = {check.__name__: check for check in checks}
    expected = dict(expected_failures or {})
    unknown = sorted(expected.keys() - by_name.keys())
    if unknown:
        raise ValueError(
            f"there is no check {', '.join(unknown)} (expected_failures); known: "
            f"{', '.join(by_name)}"
        )
    found: list[str] = []
    first: Exception | None = None
    for name, check in by_name.items():
        try:
            check(case)
        except Exception as error:
            if name in expected:
                continue
            first = first or error
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            found.append(f"{name}: {what}{' '.join(str(error).split())}")
        else:
            if name in expected:
                found.append(
                    f"{name}: passes, and was expected to fail ({expected[name]}); "
                    "remove it from expected_failures"
                )
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise AssertionError(
            f"{case.name} fails {len(found)} of {len(by_name)} checks:\n{lines}"
        ) from first


def demand(condition: Any, found: str) -> None:
    """Raises AssertionError with a finding unless a condition holds."""
    if not condition:
        raise AssertionError(found)


@contextmanager
def temporary_path(name: str) -> Iterator[Path]:
    """The path of a file in a temporary folder."""
    with TemporaryDirectory() as folder:
        yield Path(folder, name)
