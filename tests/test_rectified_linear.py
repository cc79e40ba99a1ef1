"""RectifiedLinear and LNP: each finds the cell that it describes."""

import numpy as np
import pytest
import torch

from retinakit.contracts import make_recording, make_split
from retinakit_plugins.models.rectified_linear import LNP, RectifiedLinear

QUICK = {"steps": 600, "learning_rate": 1e-2, "patience": 0, "decay": "cosine"}


def recording(respond, units):
    """Two cells with Gaussian filters at two places, under Gaussian white noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    filters = np.stack([np.exp(-((y - a) ** 2 + (x - b) ** 2) / 4) for a, b in ((3, 3), (5, 2))])
    filters /= np.linalg.norm(filters, axis=(1, 2), keepdims=True)

    def split(frames):
        stimulus = random.standard_normal((frames, 8, 8)).astype(np.float32)
        rate, response = respond(np.einsum("fyx,cyx->fc", stimulus, filters), random)
        return make_split(stimulus, response, frame_interval=0.1, rate=rate, units=units)

    lengths = {"train": 3000, "validation": 500, "test": 500}
    return make_recording({name: split(n) for name, n in lengths.items()}), filters


def cosines(model, filters):
    kernel = model.parameters()["kernel"].values[:, 0]
    return np.einsum("cyx,cyx->c", kernel, filters) / np.linalg.norm(kernel, axis=(1, 2))


def test_rectified_linear_finds_filter_threshold_and_constant():
    def respond(drive, random):
        rate = np.maximum(drive - 0.5, 0) - 0.3
        return rate, rate + 0.2 * random.standard_normal(rate.shape)

    data, filters = recording(respond, "noisy rate")
    model = RectifiedLinear(QUICK | {"ridge": 0.0})
    model.fit(data)
    parameters = model.parameters()
    assert (cosines(model, filters) > 0.98).all()
    np.testing.assert_allclose(parameters["offset"], -0.5, atol=0.1)
    np.testing.assert_allclose(parameters["bias"], -0.3, atol=0.05)


def test_lnp_finds_the_filter_of_an_exponential_cell():
    def respond(drive, random):
        rate = np.exp(0.8 * drive - 1)
        return rate, random.poisson(rate)

    data, filters = recording(respond, "spikes per bin")
    model = LNP(QUICK | {"smoothness": 0.02, "sparsity": 1e-3})
    model.fit(data)
    parameters = model.parameters()
    assert (cosines(model, filters) > 0.98).all()
    np.testing.assert_allclose((parameters["kernel"] ** 2).sum(("y", "x")) ** 0.5, 0.8, rtol=0.1)
    np.testing.assert_allclose(parameters["offset"], -1, atol=0.1)


@pytest.mark.parametrize("kind", [RectifiedLinear, LNP])
def test_penalties_are_sums_over_cells(kind):
    data, _ = recording(lambda drive, random: (drive**2, drive**2), "noisy rate")
    model = kind(QUICK | {"steps": 2})
    model.fit(data)
    module = model.module
    both = model.penalty(module, torch.zeros(1, 2))
    alone = []
    for cell in range(2):
        one = type(module)(torch.zeros(1, 1, 64), model.nonlinearity)
        with torch.no_grad():
            one.filter.copy_(module.filter[[cell]])
        alone.append(model.penalty(one, torch.zeros(1, 1)))
    torch.testing.assert_close(both, sum(alone))
