"""The LN model, compared with other packages on the same data in time and held-out bits."""

import pytest
from ln_cases import contests


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
