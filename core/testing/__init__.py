"""The conformance kit: checks that a dataset, a model or an analysis satisfies its contract.

For the tests of retinakit and of third-party plugins:

    import pytest
    from retinakit.testing import check_model, registered

    @pytest.mark.parametrize("plugin", registered("model", distribution="my-plugins"))
    def test_model(plugin):
        check_model(plugin)

`check_model`, `check_dataset` and `check_analysis` take a class or an entry of the registry, which
are checked with the options in `quick`, or an instance. Each function runs all checks of its kind
and raises one AssertionError that lists the failed checks by name, each with its finding. A check
that is known to fail is given in `expected_failures` with the reason; it is then an error if it
passes.

The public names, listed in `__init__.pyi`, are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
