"""Examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import retinakit

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    module.name
    for module in pkgutil.walk_packages(retinakit.__path__, "retinakit.")
    if not module.name.endswith("_kernels")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(name)
    report = doctest.testmod(module, optionflags=FLAGS)
    assert report.failed == 0
