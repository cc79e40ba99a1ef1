"""The convolutions of Zheng et al. (2021), against torch, and their processor time."""

from statistics import median
from time import process_time

import pytest
import torch
from movie_cases import SECONDS, contests, step


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


@pytest.mark.parametrize("threads", [1, 2])
def test_processor_time(benchmark, threads):
    torch.set_num_threads(threads)
    run, seconds = step("full", in_torch=False), []

    def timed():
        begin = process_time()
        run()
        seconds.append(process_time() - begin)

    benchmark.pedantic(timed, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {"processor seconds": median(seconds), "goal": SECONDS}
    torch.set_num_threads(1)
