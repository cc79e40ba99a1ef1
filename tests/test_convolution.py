"""Convolutions by Fourier transforms equal torch's, and so do their gradients."""

import pytest
import torch
from torch.nn.functional import conv2d

from retinakit.layers import convolution, correlate, correlate_in_time, fourier

SHAPES = {
    "odd": ((5, 3, 13, 14), (4, 3, 4, 5)),
    "prime": ((3, 2, 17, 13), (3, 2, 7, 6)),
    "row": ((6, 4, 1, 23), (2, 4, 1, 9)),
    "one check": ((4, 3, 1, 1), (2, 3, 1, 1)),
    "kernel as large as the field": ((2, 3, 8, 9), (3, 3, 8, 9)),
    "one channel": ((3, 1, 9, 9), (4, 1, 5, 5)),
}


@pytest.fixture
def transformed(monkeypatch):
    """Fourier transforms are used for all sizes, and the frames are several blocks."""
    monkeypatch.setattr(convolution, "FOURIER_WORK", -1)
    monkeypatch.setattr(fourier, "BLOCK_BYTES", 8000)


def pair(shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def agree(found, expected, inputs, **tolerance):
    torch.testing.assert_close(found, expected, **tolerance)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients, **tolerance)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_and_both_gradients_are_those_of_torch(transformed, shapes, dtype):
    frames, kernels = pair(shapes, dtype)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {}
    agree(correlate(frames, kernels), conv2d(frames, kernels), (frames, kernels), **tolerance)


@pytest.mark.parametrize("learned", ["frames", "kernels"])
def test_the_gradient_of_one_argument_alone(transformed, learned):
    frames, kernels = pair(SHAPES["odd"])
    (frames if learned == "kernels" else kernels).requires_grad_(False)
    inputs = [x for x in (frames, kernels) if x.requires_grad]
    agree(correlate(frames, kernels), conv2d(frames, kernels), inputs)


@pytest.mark.parametrize("every", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_in_space_and_time(transformed, every, stride):
    frames, kernels = pair([(15, 2, 11, 10), (4, 3, 2, 5, 4)])
    expected = sum(
        conv2d(frames[3 - lag : 15 - lag], kernel, stride=stride)
        for lag, kernel in enumerate(kernels)
    )
    found = correlate_in_time(frames, kernels, stride, every)
    agree(found, expected[::every], (frames, kernels))


@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 1)])
def test_several_networks_at_once(transformed, dims):
    frames, kernels = pair([(3, 5, 2, 9, 8), (4, 3, 2, 4, 3)])
    batch = frames if dims[0] == 0 else frames[0]
    starts = {None: kernels[0], 0: kernels, 1: kernels[:3].transpose(0, 1)}[dims[1]]
    found = torch.vmap(correlate, dims)(batch, starts)
    expected = torch.vmap(conv2d, dims)(batch, starts)
    inputs = [frames, kernels]
    agree(found, expected, inputs)


def test_the_network_of_zheng_et_al_uses_transforms():
    """128 filters of 25 x 25 over 20 lags, then 64 filters of 11 x 11 over 128 channels."""
    frames, first = torch.empty(64 * 20, 1, 90, 90), torch.empty(128, 20, 25, 25)
    hidden, second = torch.empty(64, 128, 66, 66), torch.empty(64, 128, 11, 11)
    assert convolution._prefers_spectra(frames.view(64, 20, 90, 90), first, 1)
    assert convolution._prefers_spectra(hidden, second, 1)
    assert not convolution._prefers_spectra(torch.empty(1024, 20, 8, 8), first[..., :6, :6], 1)
