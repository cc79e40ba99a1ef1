"""The factorized readout on sparse masks, beside products and sums in torch.

The peers of other projects are found where they are installed. One thread, or two where the name of
a contest says so.
"""

import pytest
import torch
from conftest import VERDICTS
from readout_cases import (
    DENSITIES,
    PEERS,
    SHAPES,
    Ours,
    case,
    contests,
    group,
    peak_megabytes,
    side,
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


@pytest.mark.parametrize("shape", SHAPES)
def test_memory(request, shape):
    """Printed at the end, for a training step."""
    here = case(shape, "1")
    forms = {name: Ours(here, algorithm=name) for name in ("sparse", "dense")}
    forms["product"] = PEERS["product"]()
    grown = {name: peak_megabytes(side(form, here, "training")) for name, form in forms.items()}
    if None in grown.values():
        pytest.skip("this system does not tell the memory that a process had at most")
    line = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in grown.items())
    request.config.stash.setdefault(VERDICTS, []).append(f"readout-{shape}-training-memory: {line}")
    if shape == "S3":  # the others' features under masks are small
        assert grown["sparse"] < grown["dense"] < grown["product"] / 2


@pytest.mark.parametrize("contest", list(contests()), ids=lambda contest: contest.id)
def test_contest(contested, contest):
    contested(contest)
