"""The factorized readout on sparse masks, compared with torch and with other projects.

Other projects are included if they are installed. Contests use one thread, unless their name gives
another number.
"""

import pytest
import torch
from contest import NO_MEMORY
from readout_cases import (
    DENSITIES,
    SHAPES,
    Ours,
    case,
    contests,
    group,
    memory_contests,
    missing,
    side,
    step_memory,
)

MODES = ("inference", "training")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ours(benchmark, shape, density, mode):
    here = case(shape, density)
    benchmark.group = group(shape, density, mode)
    benchmark.pedantic(side(Ours(here, algorithm="auto"), here, mode), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("contest", list(contests()), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


@pytest.mark.parametrize("contest", list(memory_contests()), ids=lambda contest: contest.id)
def test_memory(announced, contest):
    announced(contest)


@pytest.mark.skipif(bool(NO_MEMORY or missing("torch")), reason=NO_MEMORY or missing("torch"))
def test_a_step_of_many_neurons_takes_less_memory():
    """The other features under the masks take little memory."""
    sparse, _ = step_memory("S3", "1")
    dense, product = step_memory("S3", "100")
    assert sparse < dense < product / 2
