"""Examples in docstrings run, and no public function or class lacks one."""

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import retinakit
import retinakit_plugins

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    module.name
    for package in (retinakit, retinakit_plugins)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("_kernels")
]
STUBS = sorted(Path(retinakit.__file__).parent.glob("*/__init__.pyi"))
"""The lists of the public names of each wing."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(name)
    report = doctest.testmod(module, optionflags=FLAGS)
    assert report.failed == 0


def public(stub: Path) -> dict[str, Any]:
    """The public names of a wing with what they stand for."""
    wing = importlib.import_module(f"retinakit.{stub.parent.name}")
    names = [
        alias.asname or alias.name
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return {name: getattr(wing, name) for name in names}


def lacks_example(value: Any) -> bool:
    """Whether a function or a class has no example. An exception needs none."""
    if not (inspect.isroutine(value) or inspect.isclass(value)):
        return False
    if inspect.isclass(value) and issubclass(value, Exception):
        return False
    return ">>>" not in (value.__doc__ or "")


def test_each_wing_lists_its_public_names():
    assert {stub.parent.name for stub in STUBS} >= {"contracts", "layers", "report", "training"}


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_every_public_function_and_class_has_an_example(stub):
    assert not [name for name, value in public(stub).items() if lacks_example(value)]


def test_every_score_has_an_example():
    functions = inspect.getmembers(importlib.import_module("retinakit.scores"), inspect.isfunction)
    assert not [name for name, f in functions if name[0] != "_" and lacks_example(f)]
