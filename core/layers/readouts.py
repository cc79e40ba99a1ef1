"""Factorized readouts: a spatial mask and feature weights for each cell (Klindt et al. 2017)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from retinakit.layers.readout_kernels import Support, factorized_readout

MASK_START = 1e-3
WEIGHT_START = 1e-2
"""Standard deviations of the initial masks and feature weights."""

GAUSSIAN_START = 2.0
"""Initial standard deviation of a Gaussian mask, in pixels of the feature map."""


class SeparableReadout(nn.Module, ABC):
    """Base class of factorized readouts, for any parametrisation of the masks m.

        r_n = Σ_k w_kn Σ_p m_pn c_kp + b_n    (Klindt et al. 2017, eqs 2 and 3)

    with the feature maps c (feature k, position p), the feature weights w and the bias b of cell n.

    Args:
        cells: the number of cells, N.
        features: the number of features, K.
        places: height and width of the feature maps.
        positive_weight: use the absolute values of the feature weights.
        bias: whether there is a bias b_n.

    Attributes:
        feature_weight: (feature, cell), before `positive_weight` is applied.
        bias: (cell,), or None.

    Example:
        >>> readout = GaussianReadout(cells=3, features=2, places=(4, 5))
        >>> readout(torch.ones(10, 2, 4, 5)).shape
        torch.Size([10, 3])
    """

    feature_weight: Tensor
    bias: Tensor | None

    support: Support | None = None
    """The entries of the masks that may differ from 0, if known; sparse masks are then evaluated
    faster. It must be updated when other entries become nonzero."""

    whole_gradient: bool = False
    """Whether mask entries outside the support also get a gradient."""

    sparse_gradient: bool = False
    """Whether the gradient of the masks is a sparse tensor if there is a support."""

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
        """The masks (position, cell), after the constraints on sign and norm are applied."""

    @abstractmethod
    def start_at(self, places: Tensor, peaks: Tensor) -> None:
        """Initialises the masks at estimated receptive field centres.

        Args:
            places: (cell, 2), y and x in pixels of the feature map.
            peaks: (cell,), the value of each mask there.
        """

    def forward(self, features: Tensor) -> Tensor:
        """Computes the responses of the cells.

        Args:
            features: (n, feature, height, width).

        Returns:
            (n, cell).
        """
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
        """The feature weights (feature, cell), after the constraint on their sign is applied."""
        return self.feature_weight.abs() if self.positive_weight else self.feature_weight

    def mask_l1(self) -> Tensor:
        """Σ_n Σ_p |m_pn|, the penalty with the weight λ_m in eq 4."""
        return self.masks().abs().sum()

    def weight_l1(self) -> Tensor:
        """Σ_n Σ_k |w_kn|, the penalty with the weight λ_w in eq 4."""
        return self.weights().abs().sum()

    def product_l1(self) -> Tensor:
        """Σ_n (Σ_p |m_pn|)(Σ_k |w_kn|), the L1 norm of m ⊗ w summed over cells.

        It is invariant to scaling a mask by a factor and the feature weights by its inverse.
        """
        return (self.masks().abs().sum(0) * self.weights().abs().sum(0)).sum()


class FactorizedReadout(SeparableReadout):
    """The readout of Klindt et al. (2017) with one free mask value at each position of the maps.

    With a single feature, the feature weight is fixed at 1, because the mask sets the scale.

    Args:
        cells, features, places, positive_weight, bias: as for `SeparableReadout`.
        positive_mask: use the absolute values of the masks.
        normalise: divide every mask by its Euclidean norm, so that the feature weights set the
            scale. The L1 penalty then measures the sparsity of a mask and is invariant to its
            scale.

    Attributes:
        mask: (position, cell), before `positive_mask` and `normalise` are applied.

    Example:
        >>> readout = FactorizedReadout(cells=3, features=2, places=(4, 5), normalise=True)
        >>> readout(torch.ones(10, 2, 4, 5)).shape, readout.masks().shape
        (torch.Size([10, 3]), torch.Size([20, 3]))
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
        """Sets each mask to 0 outside a square.

        Args:
            distance: half the side of the square, in pixels of the feature map.
            places: (cell, 2), the centres of the squares, y and x in pixels of the feature map.
        """
        near = [
            (torch.arange(side)[:, None] - place).abs() <= distance
            for side, place in zip(self.places, places.T, strict=True)
        ]
        inside = (near[0][:, None] & near[1]).flatten(0, 1)
        with torch.no_grad():
            self.mask.mul_(inside.to(self.mask))

    def start_at(self, places: Tensor, peaks: Tensor) -> None:
        """Sets each mask to its value in `peaks` at one position; other values are unchanged."""
        index = places[:, 0] * self.places[1] + places[:, 1]
        with torch.no_grad():
            self.mask[index, torch.arange(len(index))] = peaks.to(self.mask)

    def fix_at(self, places: Tensor) -> None:
        """Sets each mask to 1 at one position and 0 elsewhere, and fixes it (Batty et al. 2017).

        Args:
            places: (cell, 2), y and x in pixels of the feature map.
        """
        with torch.no_grad():
            self.mask.zero_()
        self.start_at(places, torch.ones(len(places)))
        self.mask.requires_grad_(False)
        self.feature_weight.requires_grad_(True)


class GaussianReadout(SeparableReadout):
    """A readout whose masks are isotropic Gaussians of sum 1 (St-Yves & Naselaris 2017).

    Their centres and widths are learned by gradient descent with the other weights, whereas the
    authors use a grid search.

    Args:
        cells, features, places, positive_weight, bias: as for `SeparableReadout`.

    Attributes:
        centre: (cell, 2), y and x in pixels of the feature map.
        log_deviation: (cell,), the logarithm of the standard deviation in pixels.

    Example:
        >>> readout = GaussianReadout(cells=3, features=2, places=(4, 5))
        >>> readout.masks().sum(0).round(decimals=4).tolist()
        [1.0, 1.0, 1.0]
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
        """Sets the centres of the masks, and multiplies the feature weights by `peaks`."""
        with torch.no_grad():
            self.centre.copy_(places)
            self.feature_weight.mul_(peaks.to(self.feature_weight))
