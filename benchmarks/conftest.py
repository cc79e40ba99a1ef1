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
def announced(request):
    """Runs a contest, whose verdict is printed at the end."""

    def run(contest, work=lambda contest: contest.run()):
        if contest.missing:
            pytest.skip(contest.missing)
        request.config.stash.setdefault(VERDICTS, []).append(work(contest))

    return run


@pytest.fixture
def contested(announced, benchmark):
    """The same as a benchmark."""

    def run(contest):
        announced(contest, lambda contest: contest.benchmark(benchmark))

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
