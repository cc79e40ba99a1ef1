"""The factorized readout of Klindt et al. (2017), dense or on sparse masks.

A neuron reads all channels of a feature map through one mask in space, and weights the channels
(eqs. 2 to 4). An L1 penalty makes the masks sparse; sparse kernels then do a small part of the
work of the matrix products.
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
"""The cost of a sparse readout for each position and for each entry of the support, in units of the
time that the matrix products take for an entry of the masks. Measured on AVX2, forward and
backward; the values for a GPU are estimated from its arithmetic rates, with products in TF32."""

LANES = 8
"""Samples of the batch that the kernels handle at once."""


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
    """Reads features through one mask and one set of channel weights for each neuron.

        out[b, n] = bias[n] + Σ_k feature_weight[k, n] · Σ_p features[b, k, p] · mask[p, n]

    Both algorithms are differentiable, and neither holds an array of (batch, channel, neuron).
    Compiled kernels serve float32 on the CPU, and float32 and bfloat16 on a GPU;
    elsewhere, torch does the sparse algorithm too. Features and weights of another precision are
    multiplied in that of the masks on the CPU, and in that of the features on a GPU. The result
    does not depend on the number of threads.

    Args:
        features: (batch, channel, position); a map in space is flattened, `.flatten(2)`.
        mask: (position, neuron).
        feature_weight: (channel, neuron).
        bias: (neuron,), or none.
        algorithm: "dense" multiplies matrices, "sparse" visits the support alone, and "auto" does
            what `choose` says.
        support: entries of the mask that are used. The others count as zeros, whatever they hold,
            and get a gradient of 0, in both algorithms; `Support.of` makes it once for many
            steps. Without it, all entries are used by "dense", and "sparse" takes the nonzero
            ones at each call, which costs more than the readout itself.
        whole_gradient: whether entries outside of the support get their gradient too, which says
            how the loss would change if they left 0. It costs a product of dense matrices.
        sparse_gradient: whether the sparse algorithm gives the masks a sparse gradient, which saves
            the time and the memory of its zeros. `ProximalAdam` accepts it.

    Returns:
        (batch, neuron), of the features' type.

    Raises:
        UserError: if the shapes do not fit together, or for an unknown algorithm.

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
    """The faster algorithm, by a rule that was measured.

    Args:
        features: (batch, channel, position); only shape, type and device matter.
        mask: (position, neuron).
        support: without one the answer is "dense", because finding the support costs too much.
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
            f"'bias' has the shape {tuple(bias.shape)}; give one number for each of the "
            f"{neurons} neurons"
        )
    if support is not None and support.inside.shape != mask.shape:
        raise UserError(
            f"'support' is of masks of the shape {tuple(support.inside.shape)} and 'mask' has "
            f"{tuple(mask.shape)}; make it from these masks"
        )
