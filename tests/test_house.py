"""The house plan: which wing may import which, read from the imports themselves."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {
    "kernels": 0,
    "contracts": 0,
    "registry": 0,
    "scores": 1,
    "layers": 2,
    "spikes": 2,
    "simulation": 2,
    "regression": 2,
    "report": 2,
    "training": 3,
    "pipeline": 3,
    "testing": 4,
    "doctor": 4,
    "cli": 4,
}
"""Arrows run down, and between the wings of one floor one way only."""


def imports(path: Path) -> Iterator[str]:
    """The modules of the project that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module in ("retinakit", "retinakit_plugins"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def wing(path: Path) -> str:
    part = path.relative_to(ROOT / "core").parts[0]
    return part.removesuffix(".py")


def arrows() -> dict[str, set[str]]:
    """Of each wing, the others that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "core").rglob("*.py"):
        for module in imports(path):
            top, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if top == "retinakit" and other in FLOORS and other != wing(path):
                found[wing(path)].add(other)
    return found


def test_every_file_of_core_is_in_a_wing():
    wings = {wing(path) for path in (ROOT / "core").rglob("*.py")} - {"__init__"}
    assert wings == FLOORS.keys()


def test_arrows_run_down():
    upwards = {
        f"{one} → {other}"
        for one, others in arrows().items()
        for other in others
        if FLOORS[other] > FLOORS[one]
    }
    assert not upwards


def test_no_two_wings_import_each_other():
    found = arrows()
    circles = {
        " ↔ ".join(sorted((one, other)))
        for one, others in found.items()
        for other in others
        if one in found.get(other, ())
    }
    assert not circles


def test_core_imports_no_plugin():
    guilty = {
        path.name
        for path in (ROOT / "core").rglob("*.py")
        if any(module.startswith("retinakit_plugins") for module in imports(path))
    }
    assert not guilty


def test_no_plugin_imports_another():
    guilty = {
        path.name
        for path in (ROOT / "plugins").rglob("*.py")
        if any(module.startswith("retinakit_plugins") for module in imports(path))
    }
    assert not guilty


@pytest.mark.parametrize("folder", ["plugins", "tests/distributions"])
def test_plugins_import_the_public_names_of_a_wing(folder):
    """A plugin needs nothing that is not listed in a wing's `__init__.pyi`."""
    past = {
        f"{path.name}: {module}"
        for path in (ROOT / folder).rglob("*.py")
        for module in imports(path)
        if module.startswith("retinakit.") and module.count(".") > 1
    }
    assert not past


def test_no_two_files_of_core_have_one_name():
    names = [path.name for path in (ROOT / "core").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))
