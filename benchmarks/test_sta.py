"""Spike-triggered statistics, in one and in two threads, compared with other libraries.

`make bench` installs the other libraries. Case c takes about 4 GB.
"""

import pytest
from sta_cases import CASES, contests, covariance, data, group, ours, ours_in_numba

OURS = [(case, ours, threads) for case in CASES if "stc" not in case for threads in (1, 2)]
OURS += [("b", ours_in_numba, 1), ("stc", covariance, 1), ("stc-float", covariance, 1)]


@pytest.mark.parametrize(
    ("case", "method", "threads"),
    [pytest.param(*run, id="{}-{.__name__}-threads={}".format(*run)) for run in OURS],
)
def test_ours(benchmark, case, method, threads):
    benchmark.group = group(case)
    benchmark.pedantic(method, (data(case), threads), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("contest", list(contests()), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
