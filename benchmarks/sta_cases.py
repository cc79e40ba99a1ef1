"""The cases of spike-triggered statistics, and the peers' methods.

Every method takes a split of a recording and returns averages (cell, lag, pixel) over the frames
with a full history, lag 0 first. Peers that are not installed are skipped. RFEst runs only the
small case, because it stores all windows in double precision, which takes 16 GB for case a.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr
from contest import Contest

from retinakit.contracts import make_split
from retinakit.spikes import sta, stc

LAGS = 20
INTERVAL = 0.01


def case(frames: int, side: int, cells: int, rate: float, kind: str = "bits") -> xr.Dataset:
    """A split of random noise.

    The `kind` is "bits" (int8 of ±1, and counts), "single" (the same with at most one spike per
    bin, because pyret weights counts by their square in the covariance), "float", "float single",
    or "real" (float, and rates).
    """
    random = np.random.default_rng(0)
    shape = (frames, side, side)
    if kind == "real":
        response = random.random((frames, cells), np.float32)
    else:
        response = random.poisson(rate, (frames, cells))
    # Peers treat spikes without a full history, and those in the last frames, differently.
    response[: LAGS + 1] = response[-2:] = 0
    if kind.endswith("single"):
        response = np.minimum(response, 1)
    if kind in ("bits", "single"):
        stimulus = 2 * random.integers(0, 2, shape, np.int8) - 1
    else:
        stimulus = random.standard_normal(shape, np.float32)
    return make_split(stimulus, response, frame_interval=INTERVAL)


def ours(split, threads=1, algorithm="auto"):
    average = sta(split, LAGS, algorithm=algorithm, threads=threads)["sta"].values
    return average.reshape(*average.shape[:2], -1)


def ours_in_numba(split, threads=1):
    """Our method without the compiled kernels."""
    from retinakit.spikes.algorithms import bit_sums, bit_sums_numba

    kept, bit_sums.bit_sums = bit_sums.bit_sums, bit_sums_numba.bit_sums
    try:
        return ours(split, threads, "bits")
    finally:
        bit_sums.bit_sums = kept


def product_per_lag(split):
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1).astype(np.float32)
    weight = split["response"].values.astype(np.float32)
    frames = len(stimulus)
    sums = [weight[lag:].T @ stimulus[: frames - lag] for lag in range(LAGS)]
    return np.stack(sums, axis=1) / weight.sum(0, dtype=float)[:, None, None]


def spike_times(counts):
    """The edges of the bins, and spike times in the middle of their bins, as pyret needs them."""
    time = np.arange(len(counts) + 1) * INTERVAL
    return time, (np.repeat(np.arange(len(counts)), counts) + 0.5) * INTERVAL


def pyret(split):
    tools = import_module("pyret.filtertools")
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1)
    # pyret's first frame after the spike is the frame of the spike's own bin.
    return np.array(
        [
            tools.sta(time, stimulus, spikes, LAGS - 1, 1)[0][::-1]
            for time, spikes in map(spike_times, split["response"].values.T)
        ]
    )


def stnmf(split):
    tools = import_module("stnmf.preprocessing.spiketriggered")
    movie = split["stimulus"].values.transpose(1, 2, 0)
    average = tools.average([movie], split["response"].values[None], LAGS)
    return average.reshape(len(average), -1, LAGS).swapaxes(1, 2)[:, ::-1]


def rfest(split):
    base = import_module("rfest.GLM._base")
    windows = import_module("rfest.utils").build_design_matrix
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1)
    design = windows(stimulus, LAGS)
    # RFEst divides by the number of spikes if all responses are integers, as they are here.
    averages = [
        base.Base(design, counts, (LAGS, *split["stimulus"].shape[1:])).w_sta
        for counts in split["response"].values.T
    ]
    return np.array(averages).reshape(len(averages), LAGS, -1)[:, ::-1]


def covariance(split, threads=1):  # `threads` is not used: the threads are those of NumPy's BLAS
    return stc(split, LAGS)["stc"].values


def covariance_pyret(split):
    tools = import_module("pyret.filtertools")
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1)
    time, spikes = spike_times(split["response"].values[:, 0])
    second = tools.stc(time, stimulus, spikes, LAGS - 1, 1)
    # pyret subtracts an average over other frames, and its lags are in the opposite order.
    wrong = tools.sta(time, stimulus, spikes, LAGS)[0].ravel()
    right = tools.sta(time, stimulus, spikes, LAGS - 1, 1)[0].ravel()
    second += np.outer(wrong, wrong) - np.outer(right, right)
    pixels = stimulus.shape[1]
    blocks = second.reshape(LAGS, pixels, LAGS, pixels)[::-1, :, ::-1]
    return blocks.reshape(second.shape)


def covariance_product(split):
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1).astype(np.float32)
    counts = split["response"].values[:, 0]
    frames = np.flatnonzero(counts)
    windows = stimulus[frames[:, None] - np.arange(LAGS)].reshape(len(frames), -1)
    weight = counts[frames].astype(np.float32)
    mean = weight @ windows / weight.sum()
    return (windows * weight[:, None]).T @ windows / weight.sum() - np.outer(mean, mean)


def missing(method: Callable[..., np.ndarray]) -> str:
    """The reason why a peer's method cannot run, or ""."""
    library = method.__name__.split("_")[-1]
    module = {"pyret": "pyret.filtertools", "stnmf": "stnmf.preprocessing", "rfest": "rfest"}
    try:
        import_module(module.get(library, "numpy"))
        return ""
    except ImportError as error:
        return f"not installed ({error})"


CASES: dict[str, dict[str, Any]] = {
    "small": {"frames": 20_000, "side": 16, "cells": 1, "rate": 0.15},
    "a": {"frames": 100_000, "side": 32, "cells": 1, "rate": 0.15},
    "b": {"frames": 100_000, "side": 32, "cells": 80, "rate": 0.05},
    "c": {"frames": 300_000, "side": 90, "cells": 80, "rate": 0.05},
    "float": {"frames": 100_000, "side": 32, "cells": 80, "rate": 0.05, "kind": "float"},
    "real": {"frames": 100_000, "side": 32, "cells": 80, "rate": 0.05, "kind": "real"},
    "stc": {"frames": 100_000, "side": 8, "cells": 1, "rate": 0.163, "kind": "single"},
    "stc-float": {"frames": 100_000, "side": 8, "cells": 1, "rate": 0.163, "kind": "float single"},
}

CONTESTS: list[tuple[str, str, Callable, Callable, float | None]] = [
    # id, case, our method, the peer's method, target of the ratio of their times
    ("sta-small-rfest", "small", ours, rfest, None),
    ("sta-a-pyret", "a", ours, pyret, 25),
    ("sta-b-pyret", "b", ours, pyret, 100),
    ("sta-b-stnmf", "b", ours, stnmf, 60),
    ("sta-b-product", "b", ours, product_per_lag, 40),
    ("sta-b-numba-stnmf", "b", ours_in_numba, stnmf, 30),
    ("sta-c-pyret", "c", ours, pyret, 100),
    ("sta-float-pyret", "float", ours, pyret, 20),
    ("sta-float-stnmf", "float", ours, stnmf, 10),
    ("sta-real-product", "real", ours, product_per_lag, 3),
    ("stc-pyret", "stc", covariance, covariance_pyret, 80),
    ("stc-product", "stc", covariance, covariance_product, 2),
    ("stc-float-pyret", "stc-float", covariance, covariance_pyret, None),
    ("stc-float-product", "stc-float", covariance, covariance_product, None),
]

TOLERANCE = 2e-5
PEER_CELLS = {"c": 1}
"""Number of cells given to peers whose time is proportional to it."""


@lru_cache(maxsize=1)
def data(name: str) -> xr.Dataset:
    return case(**CASES[name])


def group(name: str) -> str:
    """A description of the case."""
    of = {"kind": "bits"} | CASES[name]
    return (
        f"{'stc' if name.startswith('stc') else 'sta'}, case {name}: {of['kind']}, "
        f"{of['frames'] // 1000}k frames of {of['side']}x{of['side']}, {of['cells']} cell(s)"
    )


def for_peer(name: str) -> xr.Dataset:
    return data(name).isel(cell=slice(PEER_CELLS.get(name)))


def contests() -> Iterator[Contest]:
    """All contests, with our method in one thread."""
    for name, on, mine, peer, target in CONTESTS:

        def sides(on=on, mine=mine, peer=peer):
            return partial(mine, data(on)), partial(peer, for_peer(on))

        cells = CASES[on]["cells"]
        share = PEER_CELLS.get(on, cells) / cells
        yield Contest(name, group(on), target, sides, TOLERANCE, share, missing(peer))
