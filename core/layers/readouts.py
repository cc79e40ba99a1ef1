"""The factorized readout: where each cell looks, and what it reads there (Klindt et al. 2017)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from retinakit.layers.readout_kernels import Support, factorized_readout

MASK_START = 1e-3
WEIGHT_START = 1e-2
"""Standard deviations that masks and feature weights start with."""

GAUSSIAN_START = 2.0
"""Standard deviation of a Gaussian mask at the start, in places of the map."""


class SeparableReadout(nn.Module, ABC):
    """r_n = Σ_k w_kn Σ_p m_pn c_kp + b_n (eqs 2 and 3) for any parametrisation of the masks m.

    Args:
        cells: N.
        features: K.
        places: height and width of the maps.
        positive_weight: take the absolute values of the feature weights.
        bias: whether there is a constant b_n.
    """

    feature_weight: Tensor
    bias: Tensor | None

    support: Support | None = None
    """Where the masks may differ from 0, if that is known: sparse masks are read faster. The code
    that sets it must keep it correct."""

    whole_gradient: bool = False
    """Whether masks get a gradient outside of the support too."""

    sparse_gradient: bool = False
    """Whether the gradient of masks is a sparse tensor while there is a support."""

    def __init__(
        self,
        cells: int,
        features: int,
        places: tuple[int, int],
        *,
        positive_weight: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.places, self.positive_weight = places, positive_weight
        weight = 1 / features + torch.randn(features, cells) * WEIGHT_START
        self.feature_weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(cells)) if bias else None

    @abstractmethod
    def masks(self) -> Tensor:
        """(place, cell): the masks after their sign and norm are applied."""

    @abstractmethod
    def start_at(self, places: Tensor, peaks: Tensor) -> None:
        """Places the masks where the cells are thought to look.

        Args:
            places: (cell, 2), y and x on the map.
            peaks: (cell,), how strongly a cell reads there.
        """

    def forward(self, features: Tensor) -> Tensor:
        """(n, K, height, width) to (n, N)."""
        return factorized_readout(
            features.flatten(2),
            self.masks(),
            self.weights(),
            self.bias,
            support=self.support,
            whole_gradient=self.whole_gradient,
            sparse_gradient=self.sparse_gradient,
        )

    def weights(self) -> Tensor:
        """(feature, cell): the feature weights after their sign is applied."""
        return self.feature_weight.abs() if self.positive_weight else self.feature_weight

    def mask_l1(self) -> Tensor:
        """Σ_n Σ_p |m_pn|, the penalty of λ_m in eq 4."""
        return self.masks().abs().sum()

    def weight_l1(self) -> Tensor:
        """Σ_n Σ_k |w_kn|, the penalty of λ_w in eq 4."""
        return self.weights().abs().sum()

    def product_l1(self) -> Tensor:
        """Σ_n (Σ_p |m_pn|)(Σ_k |w_kn|): the L1 norms of m ⊗ w.

        It does not depend on how mask and weights share a cell's scale.
        """
        return (self.masks().abs().sum(0) * self.weights().abs().sum(0)).sum()


class FactorizedReadout(SeparableReadout):
    """The readout of Klindt et al.: each mask is free over the places of the maps.

    With a single feature its weight is fixed at 1, because the mask carries the scale.

    Args:
        positive_mask: take the absolute values of the masks.
        normalise: divide every mask by its Euclidean norm, so that the feature weights carry the
            scale. The L1 penalty then measures how sparse a mask is, and scaling the mask does
            not change it.
    """

    def __init__(
        self,
        cells: int,
        features: int,
        places: tuple[int, int],
        *,
        positive_mask: bool = False,
        positive_weight: bool = False,
        normalise: bool = False,
        bias: bool = True,
    ):
        super().__init__(cells, features, places, positive_weight=positive_weight, bias=bias)
        self.positive_mask, self.normalise = positive_mask, normalise
        self.mask = nn.Parameter(torch.randn(places[0] * places[1], cells) * MASK_START)
        if features == 1 and not normalise:
            self.feature_weight = nn.Parameter(torch.ones(1, cells), requires_grad=False)

    def masks(self) -> Tensor:
        mask = self.mask.abs() if self.positive_mask else self.mask
        return mask / mask.norm(dim=0) if self.normalise else mask

    def clear_beyond(self, distance: int, places: Tensor) -> None:
        """Sets each mask to 0 outside a square around a place.

        Args:
            distance: half the side of the square, in rows or columns of the map.
            places: (cell, 2), y and x on the map.
        """
        near = [
            (torch.arange(side)[:, None] - place).abs() <= distance
            for side, place in zip(self.places, places.T, strict=True)
        ]
        inside = (near[0][:, None] & near[1]).flatten(0, 1)
        with torch.no_grad():
            self.mask.mul_(inside.to(self.mask))

    def start_at(self, places: Tensor, peaks: Tensor) -> None:
        """Sets each mask's value at one place; the others stay as they are."""
        index = places[:, 0] * self.places[1] + places[:, 1]
        with torch.no_grad():
            self.mask[index, torch.arange(len(index))] = peaks.to(self.mask)

    def fix_at(self, places: Tensor) -> None:
        """Makes each mask 1 at one place and 0 elsewhere, for good (Batty et al. 2017).

        Args:
            places: (cell, 2), y and x on the map.
        """
        with torch.no_grad():
            self.mask.zero_()
        self.start_at(places, torch.ones(len(places)))
        self.mask.requires_grad_(False)
        self.feature_weight.requires_grad_(True)


class GaussianReadout(SeparableReadout):
    """Each mask is a round Gaussian of sum 1 (St-Yves & Naselaris 2017).

    Its centre and width are learned together with the other weights; the authors searched a grid.
    """

    def __init__(
        self,
        cells: int,
        features: int,
        places: tuple[int, int],
        *,
        positive_weight: bool = False,
        bias: bool = True,
    ):
        super().__init__(cells, features, places, positive_weight=positive_weight, bias=bias)
        middle = torch.tensor([(side - 1) / 2 for side in places])
        self.centre = nn.Parameter(middle.repeat(cells, 1))
        self.log_deviation = nn.Parameter(torch.full((cells,), GAUSSIAN_START).log())

    def masks(self) -> Tensor:
        precision = torch.exp(-2 * self.log_deviation)
        y, x = (
            torch.softmax(
                -0.5 * precision * (torch.arange(side).to(centre)[:, None] - centre) ** 2, dim=0
            )
            for side, centre in zip(self.places, self.centre.T, strict=True)
        )
        return (y[:, None] * x).flatten(0, 1)

    def start_at(self, places: Tensor, peaks: Tensor) -> None:
        """Centres each mask, and scales the feature weights."""
        with torch.no_grad():
            self.centre.copy_(places)
            self.feature_weight.mul_(peaks.to(self.feature_weight))
