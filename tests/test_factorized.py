"""The factorized readout, and the penalties that go with it."""

import pytest
import torch

from retinakit.layers import (
    LAPLACIAN,
    FactorizedReadout,
    GaussianReadout,
    group_sparsity,
    roughness,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "readout",
    [
        FactorizedReadout(5, 3, (4, 6)),
        FactorizedReadout(5, 3, (4, 6), positive_mask=True, positive_weight=True, bias=False),
        FactorizedReadout(5, 3, (4, 6), normalise=True),
        FactorizedReadout(5, 1, (4, 6)),
        GaussianReadout(5, 3, (4, 6)),
    ],
    ids=["free", "positive", "normalised", "single", "gaussian"],
)
def test_it_is_a_weighted_sum_over_all_features_and_places(readout):
    features = torch.randn(7, readout.weights().shape[0], 4, 6)
    mask = readout.masks().view(4, 6, 5)
    full = torch.einsum("yxn,kn->kyxn", mask, readout.weights())
    expected = torch.einsum("bkyx,kyxn->bn", features, full)
    bias = 0 if readout.bias is None else readout.bias
    torch.testing.assert_close(readout(features), expected + bias)


def test_positivity_of_masks_and_of_weights_are_separate():
    masks = FactorizedReadout(4, 2, (3, 3), positive_mask=True)
    weights = FactorizedReadout(4, 2, (3, 3), positive_weight=True)
    for readout in (masks, weights):
        with torch.no_grad():
            readout.mask.normal_()
            readout.feature_weight.normal_()
    assert (masks.masks() >= 0).all() and (masks.weights() < 0).any()
    assert (weights.masks() < 0).any() and (weights.weights() >= 0).all()


def test_a_penalty_is_a_sum_over_cells():
    one = FactorizedReadout(1, 3, (4, 4))
    many = FactorizedReadout(9, 3, (4, 4))
    with torch.no_grad():
        many.mask.copy_(one.mask.expand(-1, 9))
        many.feature_weight.copy_(one.feature_weight.expand(-1, 9))
    for penalty in ("mask_l1", "weight_l1", "product_l1"):
        torch.testing.assert_close(9 * getattr(one, penalty)(), getattr(many, penalty)())
    torch.testing.assert_close(
        one.product_l1(), torch.einsum("p,k->pk", one.mask[:, 0], one.weights()[:, 0]).abs().sum()
    )


def test_the_product_of_norms_does_not_pair_the_cells():
    """The known mistake is (Σ_n |m_n|)(Σ_n |w_n|), a product over pairs of cells."""
    readout = FactorizedReadout(2, 2, (1, 1))
    with torch.no_grad():
        readout.mask.copy_(torch.tensor([[1.0, 0.0]]))
        readout.feature_weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert readout.product_l1().item() == 0


def test_scale_moved_between_mask_and_weights_changes_no_product():
    readout = FactorizedReadout(4, 3, (5, 5))
    features = torch.randn(6, 3, 5, 5)
    before, penalty = readout(features), readout.product_l1()
    with torch.no_grad():
        readout.mask.mul_(10)
        readout.feature_weight.div_(10)
    torch.testing.assert_close(readout(features), before)
    torch.testing.assert_close(readout.product_l1(), penalty)


def test_a_normalised_mask_cannot_evade_its_penalty_by_shrinking():
    readout = FactorizedReadout(4, 3, (5, 5), normalise=True)
    features = torch.randn(6, 3, 5, 5)
    before, penalty = readout(features), readout.mask_l1()
    with torch.no_grad():
        readout.mask.mul_(0.01)
    torch.testing.assert_close(readout(features), before)
    torch.testing.assert_close(readout.mask_l1(), penalty)
    with torch.no_grad():  # one place is the sparsest mask
        readout.mask.zero_()
        readout.mask[3] = 0.1
    assert readout.mask_l1().item() == pytest.approx(4)


def test_a_single_feature_leaves_the_scale_to_the_mask():
    readout = FactorizedReadout(4, 1, (3, 3))
    readout(torch.randn(2, 1, 3, 3)).sum().backward()
    assert readout.feature_weight.grad is None and readout.mask.grad is not None


def test_masks_start_where_they_are_told():
    places, peaks = torch.tensor([[1, 2], [3, 0]]), torch.tensor([0.5, 0.2])
    readout = FactorizedReadout(2, 3, (4, 5))
    readout.start_at(places, peaks)
    for cell in range(2):
        mask = readout.masks()[:, cell].view(4, 5)
        assert divmod(int(mask.argmax()), 5) == tuple(places[cell].tolist())
        torch.testing.assert_close(mask.max(), peaks[cell])
    readout.fix_at(places)
    assert readout.masks().sum(0).tolist() == [1, 1] and not readout.mask.requires_grad
    gaussian = GaussianReadout(2, 3, (4, 5))
    gaussian.start_at(places, peaks)
    maps = gaussian.masks().view(4, 5, 2)
    torch.testing.assert_close(maps.sum((0, 1)), torch.ones(2))
    assert divmod(int(maps[..., 0].argmax()), 5) == (1, 2)


def test_a_gaussian_has_its_width_and_learns_its_centre():
    readout = GaussianReadout(1, 1, (41, 41))
    with torch.no_grad():
        readout.log_deviation.fill_(1.0)
    mask, place = readout.masks()[:, 0].view(41, 41), torch.arange(41) - 20.0
    variance = (mask.sum(1) * place**2).sum()
    torch.testing.assert_close(variance, torch.tensor(2.0).exp(), rtol=1e-3, atol=0)
    readout.masks()[0].sum().backward()
    assert readout.centre.grad is not None and readout.centre.grad.abs().min() > 0


class TestPenalties:
    def test_roughness_is_that_of_equation_6(self):
        kernels = torch.randn(3, 2, 6, 5, dtype=torch.float64)
        laplacian, expected, normalised = torch.tensor(LAPLACIAN, dtype=torch.float64), 0.0, 0.0
        for kernel in kernels.flatten(0, 1):
            padded = torch.zeros(8, 7, dtype=torch.float64)
            padded[1:-1, 1:-1] = kernel
            energy = sum(
                float((padded[y : y + 3, x : x + 3] * laplacian).sum() ** 2)
                for y in range(6)
                for x in range(5)
            )
            expected += energy
            normalised += energy / 4 / float((kernel**2).sum())
        assert float(roughness(kernels, normalise=False)) == pytest.approx(expected)
        assert float(roughness(kernels)) == pytest.approx(normalised)

    def test_normalised_roughness_is_of_the_shape_alone(self):
        kernels = torch.randn(2, 1, 9, 9)
        torch.testing.assert_close(roughness(kernels * 100), roughness(kernels))
        flat = torch.ones(1, 1, 9, 9)
        assert float(roughness(flat)) < float(roughness(kernels)) / 2
        assert float(roughness(torch.zeros(1, 1, 3, 3))) == 0

    def test_group_sparsity_is_lower_where_filters_read_one_channel(self):
        spread, single = torch.full((4, 4, 1, 1), 0.5), torch.eye(4)[:, :, None, None]
        assert float((spread**2).sum()) == float((single**2).sum())
        assert float(group_sparsity(spread)) == pytest.approx(8)
        assert float(group_sparsity(single)) == pytest.approx(4, abs=1e-6)
        zero = torch.zeros(2, 2, 3, 3, requires_grad=True)
        group_sparsity(zero).backward()
        assert torch.isfinite(zero.grad).all()
