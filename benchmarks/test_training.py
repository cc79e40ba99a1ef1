"""The training loop beside a loop of plain torch."""

import pytest
from training_cases import contests


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
