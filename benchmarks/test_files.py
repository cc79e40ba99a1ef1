"""Files beside xarray's own engine, and beside memory."""

import pytest
from file_cases import contests


@pytest.mark.parametrize("contest", contests(), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
