"""Simulated cells do what their equation says, however the work is divided."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.sparse import csr_array

from retinakit.contracts import Bits, UserError
from retinakit.kernels import compiled
from retinakit.simulation import SubunitCells, simulate
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC

BACKENDS = ["numba"] if compiled is None else ["compiled", "numba"]
NONLINEARITIES = {
    "identity": lambda x: x,
    "rectify": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.logaddexp(0, x),
    "exponential": np.exp,
}


def population(height=7, width=9, cells=3, subunits=4, lags=6, **options):
    """Cells with random weights of their own for every subunit; pixels are no multiple of 8."""
    random = np.random.default_rng(0)
    spatial = np.zeros((cells * subunits, height, width))
    for field in spatial:
        y, x = random.integers(0, height - 2), random.integers(0, width - 2)
        field[y : y + 3, x : x + 3] = random.standard_normal((3, 3)) / 6
    options = {"threshold": 0.3 * np.arange(cells), "gain": 0.2 + 0.1 * np.arange(cells)} | options
    return SubunitCells(
        spatial,
        random.standard_normal((cells * subunits, lags)) / lags**0.5,
        np.kron(np.eye(cells), random.uniform(0.5, 1, subunits)),
        **options,
    )


def movie(frames, height=7, width=9, seed=0):
    random = np.random.default_rng(seed)
    return 2 * random.integers(0, 2, (frames, height, width), dtype=np.int8) - 1


def by_hand(cells, stimulus):
    """The equation, in float64."""
    flat = stimulus.reshape(len(stimulus), -1).astype(float)
    sums = flat @ np.reshape(cells.spatial, (len(cells.spatial), -1)).T
    drive = np.zeros_like(sums)
    for lag in range(cells.lags):
        drive[lag:] += np.asarray(cells.temporal)[..., lag] * sums[: len(sums) - lag]
    summed = NONLINEARITIES[cells.nonlinearity](drive) @ np.asarray(cells.output).T
    return cells.gain * NONLINEARITIES[cells.output_nonlinearity](summed - cells.threshold)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("inner", "outer"),
    [*product(NONLINEARITIES, ["rectify", "softplus", "exponential"])],
)
def test_the_rate_is_that_of_the_equation(backend, inner, outer):
    cells = population(nonlinearity=inner, output_nonlinearity=outer)
    stimulus = movie(500)
    rate = simulate(cells, stimulus, backend=backend).rate
    expected = by_hand(cells, stimulus)
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ln_cell_convolves(backend):
    random = np.random.default_rng(0)
    field, temporal = random.standard_normal((5, 5)) / 5, random.standard_normal(8)
    cell = SubunitCells(field[None], temporal, [[1.0]], nonlinearity="identity", gain=0.5)
    stimulus = random.standard_normal((300, 5, 5)).astype(np.float32)
    drive = np.convolve(np.einsum("tyx,yx->t", stimulus, field), temporal)[:300]
    rate = simulate(cell, stimulus, backend=backend).rate
    np.testing.assert_allclose(rate[:, 0], 0.5 * np.maximum(drive, 0), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x", [-200.0, -87.5, -30.0, -1.0, 0.0, 1e-3, 1.0, 30.0, 87.5])
def test_the_nonlinearities_are_exact_from_end_to_end(backend, x):
    for name in ("softplus", "exponential"):
        cell = SubunitCells([[1.0]], [1.0], [[1.0]], name)
        rate = simulate(cell, np.full((3, 1), x, np.float32), backend=backend).rate
        clipped = max(x, -87.0)
        np.testing.assert_allclose(rate, NONLINEARITIES[name](clipped), rtol=1e-6)


@pytest.mark.parametrize("spikes", ["binary", "poisson"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_threads_backends_and_stimulus_types_give_the_same_spikes(spikes, nonlinearity):
    cells = population(nonlinearity=nonlinearity)
    # More than one block of both backends, and no multiple of anything.
    stimulus = movie(5003)
    forms = [stimulus, stimulus.astype(np.float32), stimulus.astype(float), Bits.pack(stimulus)]
    first = simulate(cells, stimulus, spikes=spikes, seed=7, repeats=2)
    assert first.spikes.shape == (2, 5003, 3) and first.spikes.any()
    assert not np.array_equal(first.spikes[0], first.spikes[1])
    for backend, threads, form in product(BACKENDS, [1, 2, 3], forms):
        options = {"spikes": spikes, "seed": 7, "repeats": 2}
        other = simulate(cells, form, threads=threads, backend=backend, **options)
        np.testing.assert_array_equal(other.rate, first.rate)
        np.testing.assert_array_equal(other.spikes, first.spikes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_how_the_movie_is_cut_does_not_show(backend, monkeypatch):
    cells, stimulus = population(lags=40), movie(3100).astype(np.float16)
    whole = simulate(cells, stimulus, spikes="binary", backend=backend)
    monkeypatch.setattr("retinakit.simulation.subunit_cells.PIECE_BYTES", 1)
    pieces = simulate(cells, stimulus, spikes="binary", backend=backend)
    np.testing.assert_array_equal(whole.rate, pieces.rate)
    np.testing.assert_array_equal(whole.spikes, pieces.spikes)


def test_a_movie_that_must_be_read_is_never_held_whole(monkeypatch):
    class File:
        shape, longest = (5000, 7, 9), 0

        def __getitem__(self, frames):
            self.longest = max(self.longest, frames.stop - frames.start)
            return stimulus[frames]

    cells, stimulus, file = population(), movie(5000), File()
    monkeypatch.setattr("retinakit.simulation.subunit_cells.PIECE_BYTES", 4 * 63 * 1024)
    np.testing.assert_array_equal(simulate(cells, file).rate, simulate(cells, stimulus).rate)
    assert file.longest == 1024 + cells.lags - 1


def test_sparse_and_dense_weights_are_one():
    cells, stimulus = population(), movie(100)
    spatial = csr_array(cells.spatial.reshape(12, -1))
    sparse = SubunitCells(
        spatial, cells.temporal, csr_array(cells.output), threshold=cells.threshold, gain=cells.gain
    )
    np.testing.assert_array_equal(simulate(sparse, stimulus).rate, simulate(cells, stimulus).rate)


def test_a_shared_subunit_serves_two_cells():
    stimulus = movie(200)
    alone = population(cells=1, threshold=0.3)
    weight = np.asarray(alone.output)
    both = SubunitCells(alone.spatial, alone.temporal, np.r_[weight, 2 * weight], threshold=0.3)
    rate = simulate(both, stimulus).rate
    np.testing.assert_allclose(rate[:, :1], simulate(alone, stimulus).rate / 0.2, rtol=1e-5)
    # Twice the input, less one threshold: 2 x - 0.3 where the other cell has x - 0.3.
    active = rate[:, 0] > 0
    np.testing.assert_allclose(rate[active, 1], 2 * rate[active, 0] + 0.3, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean", [0.02, 0.7, 6.0, 60.0])
def test_poisson_counts_have_the_mean_and_variance_of_the_rate(backend, mean):
    cell = SubunitCells([[1.0]], [1.0], [[1.0]], gain=mean)
    counts = simulate(
        cell, np.ones((100_000, 1), np.int8), spikes="poisson", backend=backend
    ).spikes.astype(float)
    error = np.sqrt(mean / counts.size)
    assert counts.mean() == pytest.approx(mean, abs=4 * error)
    # The variance of a sample variance of Poisson counts is about (2 mean² + mean) / n.
    assert counts.var() == pytest.approx(mean, abs=4 * np.sqrt((2 * mean**2 + mean) / counts.size))


@pytest.mark.parametrize("rate", [1e-4, 0.3, 0.999, 1.5])
def test_binary_spikes_come_with_the_probability_of_the_rate(rate):
    cell = SubunitCells([[1.0]], [1.0], [[1.0]], gain=rate)
    drawn = simulate(cell, np.ones((200_000, 1), np.int8), spikes="binary", seed=3).spikes
    expected = min(rate, 1)
    error = np.sqrt(expected * (1 - expected) / drawn.size)
    assert drawn.max() <= 1
    assert drawn.mean() == pytest.approx(expected, abs=4 * error)


def philox(seed, frame, cell, repeat):
    """Philox 4x32-10 of Salmon et al. 2011, word for word."""
    counter, key = [frame // 4, cell, repeat, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            b >> 32 ^ counter[1] ^ key[0],
            b & 0xFFFFFFFF,
            a >> 32 ^ counter[3] ^ key[1],
            a & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter[frame % 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_generator_is_philox(backend):
    # The known answer for a counter and a key of zeros.
    assert [philox(0, frame, 0, 0) for frame in range(4)] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]
    cells, stimulus = SubunitCells([[1.0]], [1.0], [[1.0], [1.0]], gain=0.5), np.ones((99, 1))
    for seed in (5, 2**63 + 12345):
        drawn = simulate(
            cells, stimulus, spikes="binary", seed=seed, repeats=2, backend=backend
        ).spikes
        for repeat, frame, cell in np.ndindex(drawn.shape):
            assert drawn[repeat, frame, cell] == (philox(seed, frame, cell, repeat) < 2**31)


def test_the_spike_triggered_average_of_an_ln_cell_is_its_filter():
    random = np.random.default_rng(0)
    field, temporal = random.standard_normal((6, 6)) / 6, random.standard_normal(5)
    cell = SubunitCells(
        field[None], temporal, [[1.0]], "identity", "softplus", threshold=1.0, gain=0.3
    )
    stimulus = movie(200_000, 6, 6)
    counts = simulate(cell, Bits.pack(stimulus), spikes="poisson").spikes[0, :, 0].astype(float)
    average = np.stack(
        [np.tensordot(counts[4:], stimulus[4 - lag : len(stimulus) - lag], 1) for lag in range(5)]
    )
    true = np.multiply.outer(temporal, field)
    assert np.vdot(average, true) / np.linalg.norm(average) / np.linalg.norm(true) > 0.99


def test_bits_unpack_to_what_was_packed():
    stimulus = movie(30)
    np.testing.assert_array_equal(Bits.pack(stimulus).unpack(), stimulus.reshape(30, -1))
    with pytest.raises(UserError, match=r"\+1 and -1"):
        Bits.pack(stimulus * 0)


def test_booleans_are_zero_and_one():
    cells, stimulus = population(), movie(50) > 0
    np.testing.assert_array_equal(
        simulate(cells, stimulus).rate, simulate(cells, stimulus.astype(np.float32)).rate
    )


def test_what_does_not_fit_is_refused():
    cells = population()
    with pytest.raises(UserError, match="64 pixels and the cells have weights for 63"):
        simulate(cells, movie(10, 8, 8))
    with pytest.raises(UserError, match="'spatial' has 12 subunits and 'output' sums 3"):
        SubunitCells(cells.spatial, [1.0], np.eye(3))
    with pytest.raises(UserError, match="'gain' has the shape"):
        population(gain=[1.0, 2.0])
    with pytest.raises(UserError, match="'temporal' has the shape"):
        SubunitCells(cells.spatial, np.ones((2, 5)), cells.output)
    with pytest.raises(UserError, match="spikes per bin"):
        simulate(population(gain=1e3), movie(100), spikes="poisson")


@pytest.mark.parametrize(
    ("preset", "cells", "subunits", "inner"),
    [
        ("yan", 1, 4, "rectify"),
        ("ln", 1, 1, "identity"),
        ("zheng1", 2, 4, "rectify"),
        ("zheng2", 2, 4, "rectify"),
    ],
)
def test_the_rate_of_a_preset_follows_from_its_truth(preset, cells, subunits, inner):
    options = {"preset": preset, "frames": 2000, "validation_frames": 200, "test_frames": 200}
    recording = SubunitRGC(options).load()
    truth = recording["truth"]
    assert truth["output_weight"].shape == (cells, subunits)
    model = SubunitCells(
        0.5 * truth["subunit_weight"].values.reshape(cells * subunits, 8, 8),
        truth["temporal"].values,
        np.kron(np.eye(cells), np.ones(subunits)),
        inner,
        threshold=2.5,
        gain=2 / 30,
    )
    expected = by_hand(model, recording["train"]["stimulus"].values)
    assert expected.any(axis=0).all()
    np.testing.assert_allclose(recording["train"]["rate"], expected, atol=1e-6)


def test_the_two_models_of_zheng_differ_in_the_first_subunit_only():
    small = {"frames": 100, "validation_frames": 100, "test_frames": 100}
    first, second = (
        SubunitRGC({"preset": preset, **small, "threshold": 0.0}).load()["truth"]["subunit_weight"]
        for preset in ("zheng1", "zheng2")
    )
    differ = (first != second).any(("y", "x")).values
    assert differ[0, 0] and differ.sum() == 1
    # The two cells overlap, and the subunits of one do not.
    for model in (first, second):
        assert (model > 0).sum("subunit").max() == 1
        assert (model > 0).sum(("cell", "subunit")).max() == 2


@pytest.mark.parametrize(("preset", "same"), [("zheng1", [(0, 4)]), ("zheng2", [])])
def test_only_two_squares_of_zheng_are_translates_of_each_other(preset, same):
    small = {"frames": 100, "validation_frames": 100, "test_frames": 100}
    truth = SubunitRGC({"preset": preset, **small, "threshold": 0.0}).load()["truth"]
    maps = truth["subunit_weight"].values.reshape(8, 8, 8)
    np.testing.assert_allclose((maps**2).sum((1, 2)), 4, rtol=1e-6)
    for first, second in combinations(range(8), 2):
        closest = correlate2d(maps[first], maps[second]).max() / 4
        assert closest == pytest.approx(1) if (first, second) in same else closest < 0.72


def test_the_layout_of_a_published_model_is_not_an_option():
    with pytest.raises(ValueError, match="the preset zheng1 has cells 2; leave out cells"):
        SubunitRGC({"preset": "zheng1", "cells": 3})
