"""Proximal Adam: exact zeros, and the minimum of the dense problem from sparse steps."""

from copy import deepcopy

import pytest
import torch
from sklearn.linear_model import Lasso

from retinakit.contracts import UserError
from retinakit.layers import factorized_readout
from retinakit.training import Certificate, ProximalAdam, certificate, gradient, shrink

L1 = 0.1


class Regression:
    """Sparse linear regression of several targets, written as a readout of one channel."""

    def __init__(self, samples=80, positions=30, neurons=3):
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, 1, positions, generator=random, dtype=torch.float64)
        truth = torch.randn(positions, neurons, generator=random, dtype=torch.float64)
        truth *= torch.rand(positions, neurons, generator=random) < 0.2
        noise = torch.randn(samples, neurons, generator=random, dtype=torch.float64)
        self.y = self.x[:, 0] @ truth + noise / 2
        self.weight = torch.ones(1, neurons, dtype=torch.float64)
        self.mask = torch.zeros(positions, neurons, dtype=torch.float64, requires_grad=True)

    def losses(self, support=None, parts=1, **options):
        """Σ (x · m - y)² / (2 · samples), of each part of the samples."""
        options |= {"support": support, "algorithm": "dense" if support is None else "sparse"}
        for x, y in zip(self.x.chunk(parts), self.y.chunk(parts), strict=True):
            out = factorized_readout(x, self.mask, self.weight, **options)
            yield (out - y).square().sum() / (2 * len(self.x))

    def fit(self, every, steps=1200, sparse_gradient=False, **options):
        """Refreshes the support every so many steps; 0: no support at all."""
        optimizer = ProximalAdam([self.mask], lr=0.01, l1=L1, **options)
        support = None
        for step in range(steps):
            if every and step % every == 0:
                support = optimizer.refresh(self.mask, gradient(self.losses(), self.mask))
            optimizer.zero_grad()
            next(self.losses(support, sparse_gradient=sparse_gradient)).backward()
            optimizer.step()
        return optimizer

    def certificate(self, **options):
        dense = gradient(self.losses(parts=4), self.mask)
        return certificate(self.mask, dense, L1, **options)


@pytest.mark.parametrize(
    ("every", "nonnegative"), [(0, False), (20, False), (200, False), (0, True), (20, True)]
)
def test_it_finds_the_minimum_of_the_lasso(every, nonnegative):
    problem = Regression()
    problem.fit(every, nonnegative=nonnegative)
    assert problem.certificate(nonnegative=nonnegative).holds(1e-8)
    lasso = Lasso(L1, fit_intercept=False, tol=1e-14, max_iter=100_000, positive=nonnegative)
    expected = torch.from_numpy(lasso.fit(problem.x[:, 0].numpy(), problem.y.numpy()).coef_.T)
    torch.testing.assert_close(problem.mask.detach(), expected, rtol=0, atol=1e-9)
    assert torch.equal(problem.mask.detach() == 0, expected == 0)
    assert 0 < (expected == 0).double().mean() < 1


def test_a_sparse_gradient_makes_the_same_steps():
    dense, sparse = Regression(), Regression()
    dense.fit(20, steps=100)
    sparse.fit(20, steps=100, sparse_gradient=True)
    assert sparse.mask.grad.is_sparse
    assert torch.equal(sparse.mask, dense.mask)
    assert sparse.mask.any()


def test_a_certificate_sees_what_is_missing():
    problem = Regression()
    assert certificate(problem.mask, gradient(problem.losses(), problem.mask), L1).outside > 1
    problem.fit(20, steps=600)
    there = problem.certificate()
    with torch.no_grad():
        strongest = problem.mask.abs().argmax()
        problem.mask.view(-1)[strongest] *= 1.01
    assert problem.certificate().inside > 10 * there.inside
    with torch.no_grad():
        problem.mask.view(-1)[strongest] = 0
    assert problem.certificate().outside > 0.1


def test_a_certificate_by_hand():
    mask = torch.tensor([0.0, 0.0, 2.0, -1.0])
    slope = torch.tensor([0.5, -3.0, -1.0, 2.5])
    assert certificate(mask, slope, 2.0) == Certificate(0.5, 0.5)
    assert certificate(mask[:1], slope[:1], 2.0, nonnegative=True) == Certificate(-1.25, 0.0)
    assert certificate(mask[2:], slope[2:], 2.0) == Certificate(-1.0, 0.5)


@pytest.mark.parametrize("broken", [0, 5])
def test_a_certificate_does_not_hold_without_a_gradient(monkeypatch, broken):
    monkeypatch.setattr("retinakit.training.proximal.PIECE", 2)
    slope = torch.zeros(6)
    assert certificate(torch.zeros(6), slope, 1.0).holds(0.1)
    slope[broken] = torch.nan
    assert not certificate(torch.zeros(6), slope, 1.0).holds(0.1)
    assert not Certificate(0.0, float("nan")).holds(0.1)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_shrinking_solves_its_problem(nonnegative):
    values = torch.linspace(-3, 3, 61, dtype=torch.float64)
    grid = torch.linspace(0 if nonnegative else -3, 3, 6001, dtype=torch.float64)
    cost = (grid - values[:, None]).square() / 2 + 0.7 * grid.abs()
    found = shrink(values, 0.7, nonnegative)
    torch.testing.assert_close(found, grid[cost.argmin(1)], rtol=0, atol=1e-3)


def test_without_a_penalty_it_is_adam():
    ours, theirs = Regression(), Regression()
    adam = torch.optim.Adam([theirs.mask], lr=0.01)
    optimizer = ProximalAdam([ours.mask], lr=0.01)
    for problem, method in ((ours, optimizer), (theirs, adam)):
        for _ in range(50):
            method.zero_grad()
            next(problem.losses()).backward()
            method.step()
    torch.testing.assert_close(ours.mask, theirs.mask, rtol=0, atol=1e-12)


def test_entries_off_the_support_stay_zero():
    problem = Regression()
    optimizer = problem.fit(every=1000, steps=30)
    inside = optimizer.support(problem.mask).inside
    assert not problem.mask[~inside].any()
    assert problem.mask[inside].any() and not inside.all()


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("margin", [0.1, 0, -0.1])
def test_the_margin_says_how_steep_is_steep(margin, nonnegative):
    mask = torch.tensor([[0, 0, 0, 0, 0.5, 0, 0, 0, 0]])
    slope = torch.tensor([[-2.4, -2.1, -1.9, -1.7, 0, 1.7, 1.9, 2.1, 2.4]])
    optimizer = ProximalAdam([mask], l1=2, nonnegative=nonnegative)
    taken = {0.1: slope.abs() > 1.8, 0: slope.abs() > 2, -0.1: slope.abs() > 2.2}[margin]
    expected = (mask > 0) | (taken & ((slope < 0) | (not nonnegative)))
    assert torch.equal(optimizer.active(mask, slope, margin), expected)


def test_a_loaded_state_goes_on_with_its_support():
    problem = Regression()
    optimizer = problem.fit(every=1000, steps=30)
    other = Regression()
    with torch.no_grad():
        other.mask.copy_(problem.mask)
    resumed = ProximalAdam([other.mask], lr=0.01, l1=L1)
    assert resumed.support(other.mask) is None
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for p, o in ((problem, optimizer), (other, resumed)):
        for _ in range(10):
            o.zero_grad()
            next(p.losses(o.support(p.mask))).backward()
            o.step()
    assert torch.equal(problem.mask, other.mask)


def test_what_is_out_of_range_is_said():
    mask = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(UserError, match="l1 is -1; give 0 or more"):
        ProximalAdam([mask], l1=-1)
    with pytest.raises(UserError, match=r"betas are \(0.9, 1.0\)"):
        ProximalAdam([mask], betas=(0.9, 1.0))
    with pytest.raises(UserError, match="does not belong to the optimizer"):
        ProximalAdam([mask]).refresh(torch.zeros(2, 2), torch.zeros(2, 2))
