"""Every plugin of this distribution keeps its contract."""

from typing import Any

import pytest

from retinakit.testing import check_analysis, check_dataset, check_model, registered


@pytest.mark.parametrize("plugin", registered("dataset", distribution="retinakit-example"))
def test_dataset(plugin: Any) -> None:
    check_dataset(plugin)


@pytest.mark.parametrize("plugin", registered("model", distribution="retinakit-example"))
def test_model(plugin: Any) -> None:
    check_model(plugin)


@pytest.mark.parametrize("plugin", registered("analysis", distribution="retinakit-example"))
def test_analysis(plugin: Any) -> None:
    check_analysis(plugin)
