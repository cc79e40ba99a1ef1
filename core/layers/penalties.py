"""Penalties on kernels: smoothness and group sparsity (Klindt et al. 2017, eqs 6 and 7)."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

LAPLACIAN = ((0.5, 1.0, 0.5), (1.0, -6.0, 1.0), (0.5, 1.0, 0.5))
"""The nine-point Laplacian of `roughness`."""


def laplacian(kernels: Tensor) -> Tensor:
    """The five-point spatial Laplacian of kernels, padded with 0.

    Args:
        kernels: (..., y, x); along a dimension of size 1 there is no derivative.

    Returns:
        (..., y, x).

    Example:
        >>> import torch
        >>> laplacian(torch.ones(3, 3))[1, 1].item()
        0.0
    """
    result = torch.zeros_like(kernels)
    if kernels.shape[-2] > 1:
        k = pad(kernels, (0, 0, 1, 1))
        result = result + k[..., :-2, :] + k[..., 2:, :] - 2 * kernels
    if kernels.shape[-1] > 1:
        k = pad(kernels, (1, 1))
        result = result + k[..., :-2] + k[..., 2:] - 2 * kernels
    return result


def roughness(kernels: Tensor, normalise: bool = True) -> Tensor:
    """The squared nine-point Laplacian, summed over all kernels (Klindt et al. 2017, eq 6).

    Args:
        kernels: (..., y, x), padded with 0; along a dimension of size 1 there is no derivative.
        normalise: divide the sum of each kernel by 4 Σ W², as the authors' code does, so that the
            penalty does not depend on the norm of a kernel.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> smooth, rough = torch.ones(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
        >>> bool(roughness(smooth) < roughness(rough))
        True
    """
    images = kernels.flatten(0, -3)[:, None]
    laplacian = torch.tensor(LAPLACIAN, dtype=kernels.dtype, device=kernels.device)
    for dim in (0, 1):
        if kernels.shape[dim - 2] == 1:
            laplacian = laplacian.sum(dim, keepdim=True)
    around = (laplacian.shape[0] // 2, laplacian.shape[1] // 2)
    energy = (conv2d(images, laplacian[None, None], padding=around) ** 2).sum((1, 2, 3))
    if normalise:
        power = (images**2).sum((1, 2, 3))
        energy = energy / (4 * power.clamp_min(torch.finfo(power.dtype).tiny))
    return energy.sum()


def group_sparsity(kernels: Tensor) -> Tensor:
    """The Euclidean norms of spatial kernels, summed over filters and channels (eq 7).

    The penalty makes each filter depend on few channels. (The indices of the printed equation are
    exchanged; this follows the text of Klindt et al. 2017 and the authors' code.)

    Args:
        kernels: (filter, channel, y, x).

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> group_sparsity(torch.full((1, 1, 2, 2), 0.5)).item()
        1.0
    """
    # The norm is not differentiable at 0, so a tiny number is added.
    tiny = torch.finfo(kernels.dtype).tiny
    return ((kernels**2).sum((2, 3)) + tiny).sqrt().sum()
