"""The kernel of the first layers of a network of bit clips, against torch with 64 bits."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from retinakit.kernels import compiled
from retinakit.layers import ClipSizes, dropout, filter_clips, pool_bit_clips

pytestmark = pytest.mark.skipif(compiled is None, reason="the kernels are not compiled")

VALUES = torch.tensor([-0.5, 1.5])


class Case(NamedTuple):
    clips: int
    frames: int
    field: tuple[int, int]
    sides: tuple[int, int]
    stride: int
    lags: int
    types: int
    pool_sides: tuple[int, int]
    pool_stride: int
    outputs: tuple[int, ...]
    firsts: tuple[int, ...]


CASES = {
    "as in the paper": Case(2, 25, (70, 70), (10, 10), 5, 13, 8, (5, 5), 4, (8, 8), (0, 12)),
    "few types": Case(3, 7, (13, 11), (4, 3), 2, 5, 3, (2, 3), 1, (2, 4), (2, 3)),
    "lags longer than clips": Case(1, 5, (9, 70), (3, 12), 1, 9, 1, (1, 2), 3, (8,), (0,)),
    "pixels between kernels": Case(2, 17, (1, 130), (1, 2), 5, 17, 1, (1, 1), 1, (1, 2), (14, 16)),
    "one pixel": Case(2, 30, (1, 1), (1, 1), 1, 15, 2, (1, 1), 1, (3,), (3,)),
}


def case(name, dtype=torch.float64):
    """A movie, the sizes, the weights of the filters, and those of the pools."""
    torch.manual_seed(1)
    c = CASES[name]
    movie = torch.rand(c.clips, c.frames, *c.field) < torch.rand(c.clips, c.frames, c.field[0], 1)
    shapes = [(c.types, 1, *c.sides), (c.types,), (c.lags, c.types), (c.types,)]
    shapes += [(number, c.types, *c.pool_sides) for number in c.outputs]
    weights = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    return movie, ClipSizes(*c.field, c.stride, c.pool_stride, c.firsts), weights[:4], weights[4:]


def masks(seed, shape, below):
    """The factors of dropout before and after the temporal filter, from the kernel's hash."""
    clips, frames, types, rows, columns = shape
    x = np.arange(clips * rows * columns * frames * 8, dtype=np.uint32)
    x ^= np.uint32(seed & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= np.uint32(seed >> 32)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    x = x.reshape(clips, rows, columns, frames, 8).transpose(0, 3, 4, 1, 2)[:, :, :types]
    return [torch.from_numpy((half < below) * (65536 / below)) for half in (x & 0xFFFF, x >> 16)]


def reference(movie, sizes, weights, pools, probability, seed):
    space, space_bias, time, time_bias = weights
    low, high = VALUES.double()
    frames = torch.where(movie, high, low)[:, :, None].flatten(0, 1)
    maps = conv2d(frames, space, space_bias, stride=sizes.stride)
    # The kernel does not draw numbers for places that no pool uses.
    rows, columns = (
        (size - side) // sizes.pool_stride * sizes.pool_stride + side
        for size, side in zip(maps.shape[2:], pools[0].shape[2:], strict=True)
    )
    maps = maps[..., :rows, :columns].unflatten(0, movie.shape[:2])
    before, after = masks(seed, maps.shape, round((1 - probability) * 65536))
    filtered = filter_clips(maps * before, time) + time_bias[:, None, None]
    rectified = (filtered * after).relu()
    return [
        conv2d(rectified[:, first:].flatten(0, 1), pool, stride=sizes.pool_stride).unflatten(
            0, (len(movie), -1)
        )
        for pool, first in zip(pools, sizes.firsts, strict=True)
    ]


def packed(movie):
    return torch.from_numpy(np.packbits(movie.flatten(2).numpy(), axis=2, bitorder="little"))


def close(found, expected):
    scale = float(expected.detach().abs().max()) or 1.0
    torch.testing.assert_close(found.double() / scale, expected / scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_torch(name, probability):
    movie, sizes, weights, pools = case(name)
    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    expected = reference(movie, sizes, weights, pools, probability, seed)
    slopes = [torch.randn_like(one) for one in expected]
    torch.autograd.backward(expected, slopes)
    single = [weight.detach().float().requires_grad_() for weight in (*weights, *pools)]
    torch.manual_seed(5)
    found = pool_bit_clips(packed(movie), VALUES, sizes, *single[:4], single[4:], probability)
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    torch.autograd.backward(found, [slope.float() for slope in slopes])
    for of_kernel, weight in zip(single, (*weights, *pools), strict=True):
        close(of_kernel.grad, weight.grad)


def test_dropout_keeps_its_fraction_and_differs_between_layers_and_steps():
    torch.manual_seed(0)
    factors = [dropout(torch.ones(1000, 99), 0.4) for _ in range(2)]
    kept = [one > 0 for one in factors]
    for one in kept:
        assert abs(float(one.float().mean()) - 0.6) < 4 * (0.24 / one.numel()) ** 0.5
    assert abs(float((kept[0] & kept[1]).float().mean()) - 0.36) < 0.004
    np.testing.assert_allclose(factors[0][kept[0]], 1 / 0.6, rtol=1e-4)
    before, after = masks(int(torch.randint(2**63 - 1, ())), (2, 50, 8, 12, 12), 39322)
    for one in (before, after):
        assert abs(float((one > 0).double().mean()) - 0.6) < 0.006
    assert abs(float(((before > 0) & (after > 0)).double().mean()) - 0.36) < 0.006
    assert torch.equal(dropout(factors[0], 0.4, training=False), factors[0])


def test_all_instruction_sets_and_numbers_of_threads_agree(tmp_path):
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_bit_clips as t\n"
        "movie, sizes, weights, pools = t.case('few types', torch.float32)\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "found = t.pool_bit_clips(t.packed(movie), t.VALUES, sizes, *weights, pools, .4)\n"
        "found += [t.dropout(torch.ones(1001), .4)]\n"
        "sum(one.square().sum() for one in found).backward()\n"
        "found = [one.detach() for one in found] + [w.grad for w in (*weights, *pools)]\n"
        "torch.save(found, sys.argv[2])\n"
    )
    found = []
    for bits, threads in (("128", "1"), ("512", "2")):
        path = tmp_path / bits
        arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(path), threads]
        subprocess.run(arguments, check=True, env=os.environ | {"RETINAKIT_VECTOR_BITS": bits})
        found.append(torch.load(path))
    for one, other in zip(*found, strict=True):
        close(one, other.double())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": ClipSizes(64, 64, 1, 1, (0,))}, "needs 512 bytes"),
        ({"sizes": ClipSizes(1, 70_000, 1, 1, (0,))}, "70000 columns"),
        ({"sizes": ClipSizes(8, 8, 1, 1, (-1,))}, "'firsts'"),
        ({"sizes": ClipSizes(8, 8, 1, 1, (5,))}, "'firsts'"),
        ({"pools": [torch.ones(1, 2, 1, 1), torch.ones(1, 2, 3, 3)]}, "supports_bit_clips"),
        ({"time": torch.ones(300, 2)}, "supports_bit_clips"),
        ({"space": torch.ones(2, 1, 3, 30)}, "supports_bit_clips"),
        ({"bits": torch.zeros(1, 5, 8)}, "supports_bit_clips"),
    ],
)
def test_sizes_that_the_kernel_cannot_read_are_refused(changed, message):
    given = {
        "bits": torch.zeros(1, 5, 8, dtype=torch.uint8),
        "sizes": ClipSizes(8, 8, 1, 1, (0,)),
        "space": torch.ones(2, 1, 3, 3),
        "time": torch.ones(2, 2),
        "pools": [torch.ones(1, 2, 1, 1)],
    } | changed
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match=message):
        pool_bit_clips(
            given["bits"],
            VALUES,
            given["sizes"],
            given["space"],
            zero,
            given["time"],
            zero,
            given["pools"],
        )


def test_the_default_type_of_torch_does_not_matter():
    bits = torch.tensor([[[0b1010], [0b0001]]], dtype=torch.uint8)
    weights = torch.ones(1, 1, 2, 2), torch.zeros(1), torch.ones(2, 1), torch.zeros(1)
    sizes, pool = ClipSizes(2, 2, 1, 1, (0,)), torch.ones(1, 1, 1, 1)
    torch.set_default_dtype(torch.float64)
    try:
        (out,) = pool_bit_clips(bits, VALUES, sizes, *weights, [pool])
    finally:
        torch.set_default_dtype(torch.float32)
    (expected,) = pool_bit_clips(bits, VALUES, sizes, *weights, [pool])
    torch.testing.assert_close(out, expected)
