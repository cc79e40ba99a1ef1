"""The training loop, compared with a loop in plain torch and with openretina's trainer."""

import pytest
from training_cases import contests


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
