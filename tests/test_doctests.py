"""Examples in docstrings run."""

import doctest
import importlib
import pkgutil

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


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(name)
    report = doctest.testmod(module, optionflags=FLAGS)
    assert report.failed == 0
