"""The factorized readout: its algorithms against double precision, and what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from retinakit.contracts import UserError
from retinakit.kernels import compiled
from retinakit.layers import Support, choose, factorized_readout
from retinakit.layers.readout_kernels import compiled_sparse, torch_sparse
from retinakit.layers.readout_kernels.dense_products import dense_forward, dense_readout_backward
from retinakit.layers.readout_kernels.sparse_operations import (
    sparse_readout,
    sparse_readout_backward,
)
from retinakit.layers.readout_kernels.take import take

SHAPES = [
    (5, 3, 7, 4),
    (17, 5, 70, 11),
    (16, 8, 64, 9),
    (33, 13, 100, 50),
    (1, 1, 1, 1),
    (9, 1, 3, 2),
    (9, 3, 1700, 2),
    (9, 3, 400, 600),
]
"""Batch, channels, positions, neurons: whole tiles of the kernels, odd ones, and large ones."""

needs_kernels = pytest.mark.skipif(compiled is None, reason="the kernels were not compiled")


def inputs(shape, density=0.3, dtype=torch.float32):
    samples, channels, positions, neurons = shape
    random = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=random, dtype=dtype)

    mask = normal(positions, neurons) * (torch.rand(positions, neurons, generator=random) < density)
    tensors = normal(samples, channels, positions), mask, normal(channels, neurons), normal(neurons)
    return [tensor.requires_grad_() for tensor in tensors]


def with_gradients(function, tensors):
    """The output, and the gradients of a quadratic function of it."""
    out = function(*tensors)
    slope = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    return [out, *torch.autograd.grad((out * slope + out.square()).sum(), tensors)]


def exact(tensors, support=None):
    """By the definition, in double precision."""

    def read(features, mask, weight, bias):
        if support is not None:
            mask = mask * support.inside
        return torch.einsum("bkp,pn,kn->bn", features, mask, weight) + bias

    return with_gradients(read, [tensor.detach().double().requires_grad_() for tensor in tensors])


def assert_agree(found, expected, tolerance=2e-6):
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().clamp_min(1e-30)
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=tolerance)


def read(**options):
    return lambda *tensors: factorized_readout(*tensors, **options)


@pytest.fixture(params=["kernels", "torch"])
def backend(request, monkeypatch):
    """Each way to do the sparse readout."""
    if request.param == "torch":
        monkeypatch.setattr(compiled_sparse, "serves", lambda features: False)
        monkeypatch.setattr(torch_sparse, "_tell", lambda: None)
    elif compiled is None:
        pytest.skip("the kernels were not compiled")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 1.0])
def test_sparse_agrees_with_double_precision(backend, shape, density):
    tensors = inputs(shape, density)
    support = Support.of(tensors[1])
    found = with_gradients(read(algorithm="sparse", support=support), tensors)
    assert_agree(found, exact(tensors, support))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workspace", [1, 2**24])
def test_dense_agrees_with_double_precision(monkeypatch, shape, workspace):
    monkeypatch.setattr("retinakit.layers.readout_kernels.dense_products.WORKSPACE", workspace)
    monkeypatch.setattr("retinakit.layers.readout_kernels.dense_products.BLOCK", (7, 4))
    tensors = inputs(shape)
    assert_agree(with_gradients(read(algorithm="dense"), tensors), exact(tensors))


@pytest.mark.parametrize("algorithm", ["dense", "sparse"])
def test_double_precision_passes_gradcheck(algorithm):
    tensors = inputs((3, 2, 5, 4), dtype=torch.float64)
    support = Support.of(torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.5)
    assert torch.autograd.gradcheck(read(algorithm=algorithm, support=support), tensors)


@pytest.mark.parametrize("algorithm", ["dense", "sparse"])
def test_the_mask_counts_on_the_support_alone(backend, algorithm):
    tensors = inputs((9, 3, 20, 6), 1.0)
    support = Support.of(torch.rand(20, 6, generator=torch.Generator().manual_seed(1)) < 0.3)
    found = with_gradients(read(algorithm=algorithm, support=support), tensors)
    assert_agree(found, exact(tensors, support))
    assert not found[2][~support.inside].any()


@needs_kernels
@pytest.mark.parametrize("density", [0.02, 0.2])
def test_any_number_of_threads_gives_the_same(density):
    tensors = inputs((67, 5, 300, 200), density)
    options = read(algorithm="sparse", support=Support.of(tensors[1]))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(with_gradients(options, tensors))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


@needs_kernels
def test_narrower_vectors_read_the_same():
    """The processor here may be wider; the kernels are asked to hold back."""
    chosen = "test_sparse_agrees_with_double_precision and kernels"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"RETINAKIT_VECTOR_BITS": "128"}
    done = subprocess.run(
        [*command, Path(__file__), "-k", chosen], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_tensors_need_not_be_contiguous(backend):
    features, mask, weight, bias = (t.detach() for t in inputs((9, 3, 20, 6)))
    same = [
        features.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        mask.T.contiguous().T,
        weight.T.contiguous().T,
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(tensor.is_contiguous() for tensor in same)
    for algorithm in ("dense", "sparse"):
        expected = with_gradients(
            read(algorithm=algorithm),
            [t.clone().requires_grad_() for t in (features, mask, weight, bias)],
        )
        found = with_gradients(read(algorithm=algorithm), [t.requires_grad_() for t in same])
        assert_agree(found, [t.double() for t in expected])


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 2)])
def test_only_the_gradients_that_are_needed(backend, needed):
    tensors = inputs((9, 3, 20, 6))
    support = Support.of(tensors[1])
    expected = exact(tensors, support)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in needed)
    for algorithm in ("dense", "sparse"):
        out = factorized_readout(*tensors, algorithm=algorithm, support=support)
        slope = torch.arange(out.numel()).view_as(out).cos()
        loss = (out * slope + out.square()).sum()
        found = torch.autograd.grad(loss, [tensors[i] for i in needed])
        assert_agree(found, [expected[i + 1] for i in needed])


def test_nothing_to_read(backend):
    for shape in [(0, 3, 5, 4), (2, 3, 5, 0)]:
        tensors = inputs(shape, 1.0)
        for algorithm in ("dense", "sparse"):
            out, *gradients = with_gradients(read(algorithm=algorithm), tensors)
            assert out.shape == (shape[0], shape[3])
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("algorithm", ["dense", "sparse"])
def test_the_whole_gradient_is_that_of_all_entries(algorithm):
    features, mask, weight, bias = inputs((9, 3, 20, 6))
    with torch.no_grad():
        mask[:, :3] = 0
    tensors = [features, mask, weight, bias]
    options = {"algorithm": algorithm, "support": Support.of(mask), "whole_gradient": True}
    assert_agree(with_gradients(read(**options), tensors), exact(tensors))


def test_a_sparse_gradient_is_that_of_the_support(backend):
    tensors = inputs((9, 3, 20, 6), 1.0)
    support = Support.of(torch.rand(20, 6, generator=torch.Generator().manual_seed(1)) < 0.3)
    options = {"algorithm": "sparse", "support": support, "sparse_gradient": True}
    found = with_gradients(read(**options), tensors)
    assert found[2].is_sparse and found[2].shape == tensors[1].shape
    assert torch.equal(support.values(found[2]), support.values(found[2].to_dense()))
    twice = found[2] + found[2]
    torch.testing.assert_close(support.values(twice), 2 * support.values(found[2]))
    found[2] = found[2].to_dense()
    assert_agree(found, exact(tensors, support))


@pytest.mark.parametrize("algorithm", ["dense", "sparse"])
def test_features_of_half_precision(algorithm):
    tensors = [tensor.detach() for tensor in inputs((9, 3, 20, 6))]
    tensors[0] = tensors[0].bfloat16()
    out = factorized_readout(*tensors, algorithm=algorithm)
    assert out.dtype == torch.bfloat16
    assert_agree([out], exact([tensor.float() for tensor in tensors])[:1], 2**-8)


@pytest.mark.parametrize("algorithm", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision(backend, algorithm, dtype):
    tensors = inputs((9, 3, 20, 6))
    tensors[2] = tensors[2].detach().to(dtype).requires_grad_()
    found = with_gradients(read(algorithm=algorithm, support=Support.of(tensors[1])), tensors)
    assert found[0].dtype == torch.float32 and found[3].dtype == dtype
    expected = exact(tensors, Support.of(tensors[1]))
    of_weight = found.pop(3), expected.pop(3)
    assert_agree(found, expected)
    assert_agree(of_weight[:1], of_weight[1:], 2**-8 if dtype == torch.bfloat16 else 1e-5)


def test_torch_knows_the_operations(backend):
    features, mask, weight, _ = inputs((9, 3, 20, 6))
    support = Support.of(mask)
    values = support.values(mask).detach().requires_grad_()
    gradient = torch.ones(9, 6)
    for keep in (True, False):
        opcheck(dense_forward, (features, mask, weight, keep))
    opcheck(sparse_readout, (features, values, weight, *support.structure))
    for needed in ([True, True, True], [False, True, False]):
        plain = [t.detach() for t in (features, mask, weight)]
        for kept in (torch.empty(0), plain[0] @ plain[1]):
            opcheck(dense_readout_backward, (gradient, *plain, kept, needed))
        plain[1] = values.detach()
        opcheck(sparse_readout_backward, (needed, gradient, *plain, *support.structure))


@pytest.mark.parametrize(
    ("algorithm", "compiler"),
    [
        ("auto", "aot_eager"),
        ("dense", "aot_eager"),
        ("sparse", "aot_eager"),
        pytest.param("sparse", "inductor", marks=pytest.mark.slow),
    ],
)
def test_it_compiles_in_one_graph(algorithm, compiler):
    tensors = inputs((9, 3, 20, 6))
    support = Support.of(tensors[1])

    def network(features, mask, weight, bias):
        features = torch.relu(features)
        out = factorized_readout(features, mask, weight, bias, algorithm=algorithm, support=support)
        return torch.exp(out / 10)

    once = torch.compile(network, fullgraph=True, backend=compiler)
    expected = with_gradients(network, tensors)
    assert_agree(with_gradients(once, tensors), [tensor.double() for tensor in expected])


def test_neurons_follow_the_positions_of_their_masks():
    mask = torch.zeros(10, 5)
    mask[8, 0] = mask[1, 1] = mask[5, 2] = mask[0, 4] = mask[6, 4] = 1.0
    support = Support.of(mask)
    assert support.neuron.tolist() == [1, 4, 2, 0, 3]
    assert support.start.tolist() == [0, 1, 3, 4, 5, 5]
    assert support.position.tolist() == [1, 0, 6, 5, 8]
    torch.testing.assert_close(support.values(mask), torch.ones(5))
    assert support.density == 0.1


def test_the_choice_follows_density_and_size(backend):
    features = torch.empty(64, 32, 1024)

    def chosen(density, neurons=1000, features=features):
        inside = torch.zeros(1024, neurons, dtype=torch.bool)
        inside[: round(density * 1024)] = True
        return choose(features, inside.float(), Support.of(inside))

    assert chosen(0.01) == "sparse"
    assert chosen(0.5) == "dense"
    assert chosen(0.01, neurons=10) == "dense"
    assert choose(features, torch.zeros(1024, 1000)) == "dense"


@needs_kernels
def test_a_lone_sample_is_as_dear_as_a_group():
    inside = torch.rand(1024, 1000, generator=torch.Generator().manual_seed(0)) < 0.1
    support, mask = Support.of(inside), inside.float()
    assert choose(torch.empty(1, 32, 1024), mask, support) == "dense"
    assert choose(torch.empty(8, 32, 1024), mask, support) == "sparse"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3, 4, 5)}, r"'features' has the shape \(2, 3, 4, 5\)"),
        ({"mask": torch.zeros(19, 6)}, r"'mask' has the shape \(19, 6\).* the 20 positions"),
        ({"feature_weight": torch.zeros(6, 3)}, r"'feature_weight' .* \(3, 6\) with these"),
        ({"bias": torch.zeros(5)}, r"'bias' has the shape \(5,\).* 6 neurons"),
        ({"support": torch.zeros(20, 7)}, r"'support' was made from a mask of shape \(20, 7\)"),
        ({"algorithm": "fast"}, "algorithm is 'fast'; give 'auto', 'dense' or 'sparse'"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    features, mask, weight, bias = inputs((2, 3, 20, 6))
    given = {"features": features, "mask": mask, "feature_weight": weight, "bias": bias} | change
    if "support" in given:
        given["support"] = Support.of(given["support"])
    with pytest.raises(UserError, match=message):
        factorized_readout(**given)


def test_a_support_is_of_masks():
    with pytest.raises(UserError, match=r"'mask' has the shape \(5,\); give it as"):
        Support.of(torch.zeros(5))
    with pytest.raises(UserError, match=r"made for \(5, 3\); make one with Support.of"):
        Support.of(torch.ones(5, 3)).values(torch.ones(5, 2), sparse_gradient=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [0, 1, 1000])
def test_entries_are_taken_from_anywhere(dtype, entries):
    random = torch.Generator().manual_seed(0)
    values = torch.randn(20, 30, generator=random, dtype=dtype).T
    index = torch.randint(600, (entries,), generator=random)
    assert torch.equal(take(values, index), values.flatten()[index])


def test_without_kernels_torch_serves_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr("retinakit.layers.readout_kernels.compiled_sparse.compiled", None)
    monkeypatch.setattr("retinakit.layers.readout_kernels.torch_sparse.compiled", None)
    torch_sparse._tell.cache_clear()
    tensors = inputs((9, 3, 20, 6))
    with caplog.at_level("WARNING", "retinakit"):
        for _ in range(3):
            found = with_gradients(read(algorithm="sparse"), tensors)
    assert_agree(found, exact(tensors, Support.of(tensors[1])))
    assert [record.message for record in caplog.records] == [
        "the compiled kernels are not installed; the sparse readout runs in torch, which is "
        "slower; see `retina-run doctor`"
    ]
    torch_sparse._tell.cache_clear()
