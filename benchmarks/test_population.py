"""Klindt et al.'s linear network: a step of it, and a population of 5,000 neurons."""

import pytest
from conftest import VERDICTS
from population_cases import best_loss, contests, population
from readout_cases import peak_megabytes


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)


def test_memory(request):
    """Printed at the end: how far the process grows in a fit."""
    population()
    grown = {
        name: peak_megabytes(lambda zeros=zeros: best_loss(zeros, steps=60, check_every=60))
        for name, zeros in (("exact zeros", True), ("dense", False))
    }
    if None in grown.values():
        pytest.skip("this system does not tell the memory that a process had at most")
    line = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in grown.items())
    request.config.stash.setdefault(VERDICTS, []).append(f"population-5000-memory: {line}")
    assert grown["exact zeros"] < grown["dense"]
