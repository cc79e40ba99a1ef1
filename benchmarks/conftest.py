"""What the report of the benchmarks says beside the times, and what its file holds."""

from importlib.metadata import PackageNotFoundError, version

import pytest

LIBRARIES = (
    "numpy",
    "numba",
    "torch",
    "pyret",
    "stnmf",
    "rfest",
    "openretina",
    "neuralpredictors",
    "lightning",
)
VERDICTS = pytest.StashKey[list[str]]()


@pytest.fixture
def contested(request, benchmark):
    """Runs a contest as a benchmark; its verdict is printed at the end."""

    def run(contest):
        if contest.missing:
            pytest.skip(contest.missing)
        verdict = contest.benchmark(benchmark)
        request.config.stash.setdefault(VERDICTS, []).append(verdict)

    return run


def pytest_terminal_summary(terminalreporter, config):
    if verdicts := config.stash.get(VERDICTS, []):
        terminalreporter.section("ours beside the peers, in one thread if not said otherwise")
        for verdict in verdicts:
            terminalreporter.line(verdict)


def pytest_benchmark_update_machine_info(config, machine_info):
    for name in LIBRARIES:
        try:
            machine_info.setdefault("libraries", {})[name] = version(name)
        except PackageNotFoundError:
            continue


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keeps the statistics of the times, and not each time."""
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]
