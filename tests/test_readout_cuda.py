"""The readout's CUDA kernels, run by the CPU thread by thread, against double precision.

Their source is compiled with a `cuda_runtime.h` whose threads are fibers, so that no GPU is
needed; what only a GPU can show is in benchmarks/gpu.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retinakit.kernels import compiled
from retinakit.layers import Support
from retinakit.layers.readout_kernels import cuda_sparse
from retinakit.layers.readout_kernels.support import BLOCK, Slots, _blocks

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

SOURCE = Path(__file__).parent / "cuda_on_cpu"


class Kernels:
    """In place of `retinakit._kernels`: the same functions from the library made for the CPU."""

    cuda = True

    def __init__(self, library):
        self.library = library

    def __getattr__(self, name):
        function = getattr(self.library, name)

        def call(launch, shape, *arguments):
            _, _, half = launch
            given = [
                (ctypes.c_uint64 * len(argument))(*argument)
                if isinstance(argument, list)
                else ctypes.c_uint64(argument)
                for argument in arguments
            ]
            function(ctypes.c_bool(half), (ctypes.c_int * 4)(*shape), *given)

        return call


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    library = tmp_path_factory.mktemp("cuda") / "readout.so"
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", "-I", str(SOURCE)]
    source = str(SOURCE / "readout.cpp")
    subprocess.run([COMPILER, *flags, source, "-o", str(library)], check=True)
    return Kernels(ctypes.CDLL(str(library)))


@pytest.fixture
def on_cpu(kernels, monkeypatch):
    monkeypatch.setattr(cuda_sparse, "compiled", kernels)
    monkeypatch.setattr(cuda_sparse, "_launch", lambda f: (0, 0, f.dtype == torch.bfloat16))


def slots_of(support, mask, weight):
    """With what a support on a GPU has besides."""
    entries = support.start.diff()
    slot = torch.arange(mask.shape[1]).repeat_interleave(entries)
    blocks = _blocks(slot, support.position.long(), mask.shape[1], len(mask))
    return Slots.of(support.values(mask), weight, [*support.structure[:6], *blocks])


def assert_agree(found, expected, tolerance):
    scale = expected.abs().max().clamp_min(1e-30)
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("samples", "channels", "positions", "neurons", "density"),
    [(33, 9, 30, 18, 0.3), (5, 3, 7, 4, 0.0), (64, 33, 20, 40, 1.0), (1, 1, 1, 1, 1.0)],
)
def test_kernels_agree_with_double_precision(
    on_cpu, dtype, samples, channels, positions, neurons, density
):
    random = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=random)

    features = normal(samples, channels, positions).to(dtype)
    inside = torch.rand(positions, neurons, generator=random) < density
    mask, weight = normal(positions, neurons) * inside, normal(channels, neurons)
    gradient = normal(samples, neurons)
    support = Support.of(mask)
    slots = slots_of(support, mask, weight)
    rounding = 2e-6 if dtype == torch.float32 else 2**-8

    exact = [t.double().requires_grad_() for t in (features, mask, weight)]
    out = torch.einsum("bkp,pn,kn->bn", *exact)
    of_features, of_mask, of_weight = torch.autograd.grad(out, exact, gradient.double())

    assert_agree(cuda_sparse.read(features, slots), out.detach(), rounding)
    found = cuda_sparse.feature_gradient(gradient, features, slots)
    assert found.dtype == dtype and found.is_contiguous()
    assert_agree(found, of_features, rounding)
    of_values, found = cuda_sparse.slot_gradients(gradient, features, slots, True, True)
    assert_agree(found, of_weight, 2e-6)
    if support.density:
        assert_agree(of_values, support.values(of_mask), 2e-6)
    of_values, of_weight = cuda_sparse.slot_gradients(gradient, features, slots, False, False)
    assert len(of_values) == len(of_weight) == 0


def test_half_precision_rounds_as_torch_does(on_cpu):
    """A lone mask entry of weight 1 hands the gradient over to the features, rounded."""
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3e38, 3.3961e38, 1e-40, float("nan")])
    values = torch.cat([values, torch.randn(1000, generator=torch.Generator().manual_seed(0))])
    features = torch.zeros(len(values), 1, 1, dtype=torch.bfloat16)
    slots = slots_of(Support.of(torch.ones(1, 1)), torch.ones(1, 1), torch.ones(1, 1))
    found = cuda_sparse.feature_gradient(values[:, None], features, slots)
    torch.testing.assert_close(found.flatten(), values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_a_block_shares_the_positions_of_its_slots():
    mask = (torch.rand(50, 2 * BLOCK + 3, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    support = Support.of(mask)
    slots = slots_of(support, mask, torch.ones(1, mask.shape[1]))
    place, start, position = slots.blocks
    for block in range(3):
        first, last = support.start[block * BLOCK], support.start[min(block * BLOCK + BLOCK, 35)]
        shared = position[start[block] : start[block + 1]]
        used = mask[:, support.neuron[block * BLOCK :][:BLOCK]].any(1)
        assert shared.tolist() == used.nonzero().flatten().tolist()
        assert torch.equal(shared[place[first:last].long()], support.position[first:last])


def test_the_script_for_a_gpu_goes_through_its_steps_on_a_cpu(tmp_path):
    if compiled is None:
        pytest.skip("the kernels were not compiled")
    script = Path(__file__).parents[1] / "benchmarks" / "gpu" / "readout.py"
    result = tmp_path / "result.json"
    command = [sys.executable, str(script), str(result), "--device", "cpu", "--tiny"]
    subprocess.run(command, check=True, capture_output=True)
    content = json.loads(result.read_text())
    assert len(content["checks"]) == 12
    assert all(check["output"] < 1e-5 for check in content["checks"])
    assert len(content["times"]) == 12
    for case in content["times"]:
        assert {name: took > 0 for name, took in case["seconds"].items()} == {
            "sparse": True,
            "product": True,
        }
