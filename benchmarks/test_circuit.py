"""A training step of the circuit of Murray et al., against torch, and its processor time."""

from statistics import median
from time import process_time

import pytest
import torch
from circuit_cases import SECONDS, contests, form


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


def test_processor_time(benchmark):
    torch.set_num_threads(1)
    step, seconds = form("ours"), []

    def timed():
        begin = process_time()
        step()
        seconds.append(process_time() - begin)

    benchmark.pedantic(timed, rounds=15, warmup_rounds=1)
    benchmark.extra_info |= {"processor seconds": median(seconds), "goal": SECONDS}
