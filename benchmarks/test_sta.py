"""Spike-triggered statistics beside other libraries: equal results first, then the times.

The peers are those of `pip install retinakit[peers]`. Case c takes some 4 GB and minutes.
"""

from functools import lru_cache

import numpy as np
import pytest
from sta_cases import CASES, GOALS, PEER_CELLS, TOLERANCE, installed

RUNS = [
    pytest.param(goal, method, id=f"{goal}-{method.__name__}")
    for goal, (mine, peers) in GOALS.items()
    for method in (mine, *peers)
]


@lru_cache(maxsize=1)
def data(name):
    return CASES[name]()


@lru_cache(maxsize=1)
def of_first_cell(goal):
    mine, _ = GOALS[goal]
    return mine(data(goal.split("-")[0]).isel(cell=slice(1)))


@pytest.mark.parametrize(("goal", "method"), RUNS)
def test_time(benchmark, goal, method):
    if not installed(method):
        pytest.skip("the peer is not installed")
    mine, _ = GOALS[goal]
    name = goal.split("-")[0]
    cells = None if method is mine else PEER_CELLS.get(name)
    split = data(name).isel(cell=slice(cells))
    benchmark.group = goal
    benchmark.extra_info["cells"] = split.sizes["cell"]
    rows = None if name.startswith("stc") else 1
    np.testing.assert_allclose(method(split)[:rows], of_first_cell(goal), atol=TOLERANCE)
    benchmark.pedantic(method, (split,), rounds=3 if method is mine else 1)
