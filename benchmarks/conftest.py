"""Fixtures of the contests, and additions to the report and the result file of the benchmarks."""

from importlib.metadata import PackageNotFoundError, version

import pytest

LIBRARIES = (
    "numpy",
    "numba",
    "torch",
    "pyret",
    "stnmf",
    "rfest",
    "scikit-learn",
    "nemos",
    "jax",
    "openretina",
    "neuralpredictors",
    "lightning",
)
VERDICTS = pytest.StashKey[list[str]]()


@pytest.fixture
def announced(request):
    """Runs a contest and prints its verdict at the end of the session."""

    def run(contest, work=lambda contest: contest.run()):
        if contest.missing:
            pytest.skip(contest.missing)
        request.config.stash.setdefault(VERDICTS, []).append(work(contest))

    return run


@pytest.fixture
def contested(announced, benchmark):
    """Runs a contest as a benchmark of pytest-benchmark."""

    def run(contest):
        announced(contest, lambda contest: contest.benchmark(benchmark))

    return run


def pytest_terminal_summary(terminalreporter, config):
    if verdicts := config.stash.get(VERDICTS, []):
        terminalreporter.section("retinakit against peers, in one thread unless stated otherwise")
        for verdict in verdicts:
            terminalreporter.line(verdict)


def pytest_benchmark_update_machine_info(config, machine_info):
    for name in LIBRARIES:
        try:
            machine_info.setdefault("libraries", {})[name] = version(name)
        except PackageNotFoundError:
            continue


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Removes the single times from the result file, and keeps their statistics."""
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]
