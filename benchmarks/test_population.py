"""The linear network of Klindt et al.: a training step, and a population of 5,000 neurons."""

import pytest
from population_cases import contests, memory_contests


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


@pytest.mark.parametrize("contest", memory_contests(), ids=lambda contest: contest.id)
def test_memory(announced, contest):
    def less(contest):
        ours, theirs = contest.sides()
        assert ours < theirs
        return contest.verdict(ours, theirs)

    announced(contest, less)
