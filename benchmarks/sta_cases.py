"""The cases of spike-triggered statistics, and how peers do them.

Every method takes a split of a recording and returns (cell, lag, pixel) averages over the frames
with a full history, lag 0 first. Peers that are not installed are left out.
"""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import xarray as xr

from retinakit.recording import make_split
from retinakit.spikes import sta, stc

LAGS = 20
INTERVAL = 0.01


def case(frames: int, side: int, cells: int, rate: float, kind: str = "bits") -> xr.Dataset:
    """A split of noise: `kind` is bits (±1 int8 under counts), float, or real (float and rates)."""
    random = np.random.default_rng(0)
    shape = (frames, side, side)
    if kind == "real":
        response = random.random((frames, cells), np.float32)
    else:
        response = random.poisson(rate, (frames, cells))
    # Peers differ in what they do with spikes that lack a history, or are in the last frames.
    response[: LAGS + 1] = response[-2:] = 0
    if kind == "bits":
        stimulus = 2 * random.integers(0, 2, shape, np.int8) - 1
    else:
        stimulus = random.standard_normal(shape, np.float32)
    return make_split(stimulus, response, frame_interval=INTERVAL)


def ours(split, algorithm="auto"):
    average = sta(split, LAGS, algorithm=algorithm)["sta"].values
    return average.reshape(*average.shape[:2], -1)


def in_numba(split):
    """Ours without the compiled kernels."""
    from retinakit.triggered import bits, bits_numba

    kept, bits.bit_sums = bits.bit_sums, bits_numba.bit_sums
    try:
        return ours(split, "bits")
    finally:
        bits.bit_sums = kept


def product_per_lag(split):
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1).astype(np.float32)
    weight = split["response"].values.astype(np.float32)
    frames = len(stimulus)
    sums = [weight[lag:].T @ stimulus[: frames - lag] for lag in range(LAGS)]
    return np.stack(sums, axis=1) / weight.sum(0, dtype=float)[:, None, None]


def spike_times(counts):
    """In the middle of their bins, as pyret takes them with the edges of the bins."""
    time = np.arange(len(counts) + 1) * INTERVAL
    return time, (np.repeat(np.arange(len(counts)), counts) + 0.5) * INTERVAL


def pyret(split):
    tools = import_module("pyret.filtertools")
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1)
    # One frame after the spike is asked for, which is the spike's own.
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


def covariance(split):
    return stc(split, LAGS)["stc"].values


def covariance_pyret(split):
    tools = import_module("pyret.filtertools")
    stimulus = split["stimulus"].values.reshape(split.sizes["frame"], -1)
    time, spikes = spike_times(split["response"].values[:, 0])
    second = tools.stc(time, stimulus, spikes, LAGS - 1, 1)
    # It subtracts an average of other frames; and its lags run the other way.
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


def installed(method: Callable[..., np.ndarray]) -> bool:
    """Whether the library that a peer's method calls can be imported."""
    library = method.__name__.split("_")[-1]
    module = {"pyret": "pyret.filtertools", "stnmf": "stnmf.preprocessing"}.get(library)
    try:
        return module is None or bool(import_module(module))
    except ImportError:
        return False


def single(split: xr.Dataset) -> xr.Dataset:
    """At most one spike a bin: pyret weights counts by their square in the covariance."""
    split["response"] = np.minimum(split["response"], 1).assign_attrs(split["response"].attrs)
    return split


CASES: dict[str, Callable[[], xr.Dataset]] = {
    "a": lambda: case(100_000, 32, 1, 0.15),
    "b": lambda: case(100_000, 32, 80, 0.05),
    "c": lambda: case(300_000, 90, 80, 0.05),
    "float": lambda: case(100_000, 32, 80, 0.05, "float"),
    "real": lambda: case(100_000, 32, 80, 0.05, "real"),
    "stc": lambda: single(case(100_000, 8, 1, 0.163)),
    "stc_float": lambda: single(case(100_000, 8, 1, 0.163, "float")),
}

# Which method is to beat whom in each case, and by how much.
GOALS: dict[str, tuple[Callable, dict[Callable, float]]] = {
    "a": (ours, {pyret: 25}),
    "b": (ours, {pyret: 100, stnmf: 60, product_per_lag: 40}),
    "b-numba": (in_numba, {stnmf: 30}),
    "c": (ours, {pyret: 100}),
    "float": (ours, {pyret: 20, stnmf: 10}),
    "real": (ours, {product_per_lag: 3}),
    "stc": (covariance, {covariance_pyret: 80, covariance_product: 2}),
    "stc_float": (covariance, {covariance_pyret: 25, covariance_product: 1.5}),
}

TOLERANCE = 2e-5
PEER_CELLS = {"c": 1}
"""Fewer cells for a peer whose time is proportional to them."""
