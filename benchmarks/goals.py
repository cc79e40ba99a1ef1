"""Prints a line for each goal: its id, the ratio of the peer to ours, the target, and the outcome.

A goal is a contest with a target. The modules of SUITES return their contests from `contests()`,
and those of memory from `memory_contests()`. Both sides run alternately in one process after their
results were compared, and medians are reported. Run it with OMP_NUM_THREADS=1, as `make
bench-goals` does. Arguments are prefixes of ids and select goals.
"""

import sys
from importlib import import_module

SUITES = (
    "sta_cases",
    "simulation_cases",
    "training_cases",
    "ln_cases",
    "readout_cases",
    "population_cases",
    "file_cases",
    "circuit_cases",
    "movie_cases",
)


def main(chosen):
    for suite in map(import_module, SUITES):
        of_memory = getattr(suite, "memory_contests", list)
        for contest in [*suite.contests(), *of_memory()]:
            if contest.target is not None and contest.id.startswith(tuple(chosen or [""])):
                print(f"{contest.id:32} {contest.missing}" if contest.missing else contest.run())
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
