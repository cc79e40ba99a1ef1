"""Prints whether each goal is met: its id, the ratio of median times, the target.

Runs of both sides alternate in one process and one thread. Give ids to run only these.
"""

import sys
from statistics import median
from time import perf_counter

import numpy as np
from sta_cases import CASES, GOALS, PEER_CELLS, TOLERANCE, installed

SECONDS = 15
"""After so long with a peer, it is not run again."""


def timed(method, split):
    begin = perf_counter()
    result = method(split)
    return perf_counter() - begin, result


def compare(mine, peer, split, cells):
    """Median seconds of both; fails where their results differ."""
    part = split.isel(cell=slice(cells))
    result = timed(mine, split)[1]
    ours, theirs = [], []
    while not theirs or (sum(theirs) < SECONDS and len(theirs) < 7):
        seconds, expected = timed(peer, part)
        theirs.append(seconds)
        ours += [timed(mine, split)[0] for _ in range(3)]
    np.testing.assert_allclose(result[: len(expected)], expected, atol=TOLERANCE)
    return median(ours), median(theirs) * split.sizes["cell"] / part.sizes["cell"]


def main(names):
    for goal, (mine, peers) in GOALS.items():
        if names and goal not in names:
            continue
        name = goal.split("-")[0]
        split = CASES[name]()
        for peer, target in peers.items():
            label = f"{goal:8} {peer.__name__:20}"
            if not installed(peer):
                print(f"{label} not installed", flush=True)
                continue
            ours, theirs = compare(mine, peer, split, PEER_CELLS.get(name))
            ratio = theirs / ours
            print(
                f"{label} {ratio:6.1f}x  target {target:3g}x  "
                f"{'met' if ratio >= target else 'short':5}  "
                f"({ours:.4g} s against {theirs:.4g} s)"
                + (f", the peer's from {PEER_CELLS[name]} cell" if name in PEER_CELLS else ""),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
