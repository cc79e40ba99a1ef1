"""The kernel of rectified filters of bit clips, against the same in torch with 64 bits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from retinakit.kernels import compiled
from retinakit.layers import ClipSizes, filter_bit_clips, filter_clips

pytestmark = pytest.mark.skipif(compiled is None, reason="the kernels are not compiled")

# clips, frames, height, width, side_y, side_x, stride, lags, types, first, cropped
CASES = {
    "as in the paper": (2, 20, 65, 65, 10, 10, 5, 9, 8, 0, 1),
    "few types": (3, 7, 13, 11, 4, 3, 2, 5, 3, 2, 0),
    "lags longer than clips": (1, 5, 9, 70, 3, 12, 1, 9, 8, 0, 0),
    "pixels between the kernels": (2, 17, 1, 130, 1, 2, 5, 17, 1, 14, 0),
    "one pixel": (2, 30, 1, 1, 1, 1, 1, 15, 2, 3, 0),
}


def case(name, dtype=torch.float64):
    torch.manual_seed(1)
    clips, frames, height, width, side_y, side_x, stride, lags, types, first, cropped = CASES[name]
    movie = torch.rand(clips, frames, height, width) < torch.rand(clips, frames, height, 1) ** 3
    sizes = ClipSizes(
        height,
        width,
        stride,
        (height - side_y) // stride + 1 - cropped,
        (width - side_x) // stride + 1 - cropped,
        first,
    )
    shapes = (types, 1, side_y, side_x), (types,), (lags, types), (types,)
    weights = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    return movie, sizes, weights


def masks(seed, shape, below):
    """The factors of dropout before and after the temporal filter, from the kernel's hash."""
    clips, frames, types, rows, columns = shape
    place = np.arange(clips * rows * columns * frames * 8, dtype=np.uint32)
    x = place ^ np.uint32(seed & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= np.uint32(seed >> 32)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    x = x.reshape(clips, rows, columns, frames, 8).transpose(0, 3, 4, 1, 2)[:, :, :types]
    return [torch.from_numpy((half < below) * (65536 / below)) for half in (x & 0xFFFF, x >> 16)]


def reference(movie, values, sizes, weights, dropout, seed):
    space, space_bias, time, time_bias = weights
    low, high = values.double()
    frames = torch.where(movie, high, low)[:, :, None].flatten(0, 1)
    maps = conv2d(frames, space, space_bias, stride=sizes.stride)
    maps = maps[..., : sizes.rows, : sizes.columns].unflatten(0, movie.shape[:2])
    before, after = masks(seed, maps.shape, round((1 - dropout) * 65536))
    filtered = filter_clips(maps * before, time, sizes.first) + time_bias[:, None, None]
    return (filtered * after[:, sizes.first :]).relu()


def packed(movie):
    return torch.from_numpy(np.packbits(movie.flatten(2).numpy(), axis=2, bitorder="little"))


def close(found, expected):
    scale = float(expected.detach().abs().max()) or 1.0
    torch.testing.assert_close(found.double() / scale, expected / scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_torch(name, dropout):
    movie, sizes, weights = case(name)
    values = torch.tensor([-0.5, 1.5])
    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    expected = reference(movie, values, sizes, weights, dropout, seed)
    slope = torch.randn_like(expected)
    expected.backward(slope)
    single = [weight.detach().float().requires_grad_() for weight in weights]
    torch.manual_seed(5)
    found = filter_bit_clips(packed(movie), values, sizes, *single, dropout=dropout)
    close(found, expected)
    found.backward(slope.float())
    for of_kernel, weight in zip(single, weights, strict=True):
        close(of_kernel.grad, weight.grad)


def test_dropout_keeps_its_fraction_and_differs_between_steps():
    movie, sizes, _ = case("as in the paper")
    ones = [torch.zeros(8, 1, 10, 10), torch.ones(8), torch.zeros(9, 8), torch.zeros(8)]
    ones[2][0] = 1
    values = torch.tensor([0.0, 1.0])
    both = [filter_bit_clips(packed(movie), values, sizes, *ones, dropout=0.4) for _ in range(2)]
    kept = [out > 0 for out in both]
    number = kept[0].numel()
    for one in kept:  # kept by both masks
        assert abs(int(one.sum()) / number - 0.36) < 4 * (0.36 * 0.64 / number) ** 0.5
    assert abs(int((kept[0] & kept[1]).sum()) / number - 0.36**2) < 4 * (0.13 / number) ** 0.5
    np.testing.assert_allclose(both[0][kept[0]], 0.6**-2, rtol=1e-4)


def test_all_instruction_sets_and_numbers_of_threads_agree(tmp_path):
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_bit_clips as t\n"
        "movie, sizes, weights = t.case('few types', torch.float32)\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "out = t.filter_bit_clips(t.packed(movie), torch.tensor([0., 1.]), sizes, *weights,"
        " dropout=.4)\n"
        "out.square().sum().backward()\n"
        "torch.save([out.detach(), *[w.grad for w in weights]], sys.argv[2])\n"
    )
    found = []
    for bits, threads in (("128", "1"), ("512", "2")):
        path = tmp_path / bits
        arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), threads]
        environment = os.environ | {"RETINAKIT_VECTOR_BITS": bits}
        subprocess.run(arguments, check=True, env=environment)
        found.append(torch.load(path))
    for one, other in zip(*found, strict=True):
        close(one, other.double())
