"""Simulated subunit cells, compared with code in torch, NumPy and SciPy, in one thread."""

import numpy as np
import pytest
import torch
from contest import agree
from simulation_cases import SMALL, TOLERANCE, contests, forms, large, rate, small

from retinakit.simulation import simulate


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_all_agree():
    stimulus = small().stimulus[:50_000]
    for form in forms(stimulus).values():
        mine = rate(small().cells, form)
        agree(mine, small().product_and_lfilter(form), TOLERANCE)
    agree(mine, small().conv3d(stimulus), TOLERANCE)
    agree(mine, small().sliding_window(stimulus), TOLERANCE)
    np.testing.assert_array_equal(mine, rate(small().cells, stimulus, backend="numba"))


def test_all_agree_on_the_large_movie():
    stimulus = large().stimulus[:5000]
    agree(rate(large().cells, stimulus), large().product_and_lfilter(stimulus), TOLERANCE)


@pytest.mark.benchmark(group=SMALL)
@pytest.mark.parametrize("form", ["bits", "int8", "float32"])
@pytest.mark.parametrize("spikes", ["none", "binary", "poisson"])
def test_simulate(benchmark, form, spikes):
    stimulus = forms(small().stimulus)[form]
    benchmark(simulate, small().cells, stimulus, spikes=spikes)


@pytest.mark.benchmark(group=SMALL)
@pytest.mark.parametrize("form", ["bits", "int8", "float32"])
def test_numba(benchmark, form):
    stimulus = forms(small().stimulus)[form]
    benchmark(simulate, small().cells, stimulus, backend="numba")


@pytest.mark.parametrize("contest", list(contests()), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
