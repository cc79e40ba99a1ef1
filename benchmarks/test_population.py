"""Klindt et al.'s linear network: a step of it, and a population of 5,000 neurons."""

import pytest
from conftest import VERDICTS
from population_cases import contests, memory


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


def test_memory(request):
    """Printed at the end: how far a process grows in a fit."""
    zeros, dense = memory(True), memory(False)
    if zeros is None or dense is None:
        pytest.skip("this system does not tell the memory that a process had at most")
    line = f"population-5000-memory: exact zeros {zeros:.0f} MB, dense {dense:.0f} MB"
    request.config.stash.setdefault(VERDICTS, []).append(line)
    assert zeros < dense
