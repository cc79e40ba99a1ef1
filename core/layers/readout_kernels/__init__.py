"""The factorized readout of Klindt et al. (2017), with dense or sparse masks.

A neuron applies one spatial mask to all channels of a feature map and weights the channels (eqs 2
to 4). An L1 penalty makes the masks sparse. Sparse kernels then need a small fraction of the
operations of dense matrix products.
"""

from typing import Literal

from torch import Tensor

from retinakit.contracts.errors import UserError
from retinakit.layers.readout_kernels import compiled_sparse, cuda_sparse
from retinakit.layers.readout_kernels.dense_products import dense_readout, with_gradient_of_mask
from retinakit.layers.readout_kernels.sparse_operations import sparse_readout
from retinakit.layers.readout_kernels.support import Support

__all__ = ["Support", "choose", "factorized_readout"]

Algorithm = Literal["auto", "dense", "sparse"]

PER_POSITION = {"kernels": 25, "torch": 330, "gpu": 100}
PER_ENTRY = {"kernels": 2.5, "torch": 36, "gpu": 20}
"""The cost of a sparse readout for each position and for each entry of the support, relative to the
time of dense matrix products for each entry of the masks. Measured with AVX2, forward and backward.
The values for a GPU are estimated from its arithmetic throughput, with products in TF32."""

LANES = 8
"""Number of samples that the kernels process in one vector."""


def factorized_readout(
    features: Tensor,
    mask: Tensor,
    feature_weight: Tensor,
    bias: Tensor | None = None,
    *,
    algorithm: Algorithm = "auto",
    support: Support | None = None,
    whole_gradient: bool = False,
    sparse_gradient: bool = False,
) -> Tensor:
    """Computes a readout with one mask and one set of channel weights for each neuron.

        out[b, n] = bias[n] + Σ_k feature_weight[k, n] · Σ_p features[b, k, p] · mask[p, n]

    Both algorithms are differentiable, and the memory that they need for intermediate results of
    the size (batch, channel, neuron) is bounded. Compiled kernels are used for float32 on the CPU,
    and for float32 and bfloat16 on a GPU; otherwise the sparse algorithm runs in torch. If the
    precisions differ, the products are computed in that of the masks on the CPU, and in that of the
    features on a GPU. The result does not depend on the number of threads.

    Args:
        features: (batch, channel, position); flatten a spatial map with `.flatten(2)`.
        mask: (position, neuron).
        feature_weight: (channel, neuron).
        bias: (neuron,), or None.
        algorithm: "dense" uses matrix products, "sparse" uses only the entries of the support, and
            "auto" selects one with `choose`.
        support: the entries of the mask that are used, built once with `Support.of` for many
            training steps. With both algorithms, all other entries are treated as 0 and have a
            gradient of 0. Without a support, "dense" uses all entries; "sparse" determines the
            nonzero ones in each call, which takes longer than the readout itself.
        whole_gradient: whether entries outside the support also have a gradient, the derivative of
            the loss at 0. This costs a dense matrix product.
        sparse_gradient: whether the gradient of the mask is a sparse tensor with the sparse
            algorithm, which saves time and memory. `ProximalAdam` accepts it.

    Returns:
        (batch, neuron), with the dtype of the features.

    Raises:
        UserError: if the shapes do not agree, or the algorithm is unknown.

    Example:
        >>> import torch
        >>> features = torch.ones(3, 2, 4)  # (batch, channel, position)
        >>> mask = torch.tensor([[1.0], [0], [0], [2]])  # (position, neuron)
        >>> weight = torch.tensor([[1.0], [0.5]])  # (channel, neuron)
        >>> factorized_readout(features, mask, weight)[:, 0].tolist()
        [4.5, 4.5, 4.5]
    """
    _check(features, mask, feature_weight, bias, support)
    if algorithm == "auto":
        algorithm = choose(features, mask, support)
    elif algorithm not in ("dense", "sparse"):
        raise UserError(f"algorithm is {algorithm!r}; give 'auto', 'dense' or 'sparse'")
    if algorithm == "sparse":
        support = Support.of(mask) if support is None else support
        used, weight = features, feature_weight
        if not cuda_sparse.serves(features):
            used, weight = features.to(mask.dtype), feature_weight.to(mask.dtype)
        values = support.values(mask.detach() if whole_gradient else mask, sparse_gradient)
        out = sparse_readout(used, values, weight, *support.structure)
        if whole_gradient:
            out = with_gradient_of_mask(out, used, mask, weight)
    else:
        inside = mask if support is None else mask.where(support.inside, 0)
        if whole_gradient and support is not None:
            inside = mask + (inside - mask).detach()
        dtype = features.dtype if features.is_cuda else mask.dtype
        out = dense_readout(features.to(dtype), inside.to(dtype), feature_weight.to(dtype))
    return (out if bias is None else out + bias).to(features.dtype)


def choose(
    features: Tensor, mask: Tensor, support: Support | None = None
) -> Literal["dense", "sparse"]:
    """Selects the faster algorithm from measured costs.

    Args:
        features: (batch, channel, position); only its shape, dtype and device are used.
        mask: (position, neuron).
        support: of the mask; without one, the dense algorithm is selected, because determining the
            support takes longer than the readout.

    Returns:
        "dense" or "sparse".

    Example:
        >>> import torch
        >>> features, mask = torch.zeros(64, 2, 900), torch.eye(900)
        >>> choose(features, mask), choose(features, mask, Support.of(mask))
        ('dense', 'sparse')
    """
    if support is None:
        return "dense"
    by = "torch"
    if compiled_sparse.serves(features):
        by = "kernels"
    elif cuda_sparse.serves(features):
        by = "gpu"
    samples, (positions, neurons) = len(features), mask.shape
    lanes = -(-samples // LANES) * LANES if by == "kernels" else samples
    cost = PER_POSITION[by] * positions + PER_ENTRY[by] * len(support.entry)
    return "sparse" if lanes * cost < samples * positions * neurons else "dense"


def _check(
    features: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    support: Support | None,
) -> None:
    if features.ndim != 3:
        raise UserError(
            f"'features' has the shape {tuple(features.shape)}; give it as "
            "(batch, channel, position), as .flatten(2) makes it from a map"
        )
    _, channels, positions = features.shape
    if mask.ndim != 2 or len(mask) != positions:
        raise UserError(
            f"'mask' has the shape {tuple(mask.shape)}; give it as (position, neuron), with the "
            f"{positions} positions of 'features'"
        )
    neurons = mask.shape[1]
    if weight.shape != (channels, neurons):
        raise UserError(
            f"'feature_weight' has the shape {tuple(weight.shape)}; give it as (channel, neuron), "
            f"{(channels, neurons)} with these features and masks"
        )
    if bias is not None and bias.shape != (neurons,):
        raise UserError(
            f"'bias' has the shape {tuple(bias.shape)}; give it as (neuron,), one number for each "
            f"of the {neurons} neurons"
        )
    if support is not None and support.inside.shape != mask.shape:
        raise UserError(
            f"'support' was made from a mask of shape {tuple(support.inside.shape)} and 'mask' has "
            f"the shape {tuple(mask.shape)}; make it with Support.of(mask)"
        )
