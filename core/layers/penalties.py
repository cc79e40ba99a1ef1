"""Penalties on kernels: smoothness and group sparsity (Klindt et al. 2017, eqs 6 and 7)."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

LAPLACIAN = ((0.5, 1.0, 0.5), (1.0, -6.0, 1.0), (0.5, 1.0, 0.5))


def laplacian(kernels: Tensor) -> Tensor:
    """The five-point spatial Laplacian of kernels (..., y, x), which are 0 outside.

    Example:
        >>> import torch
        >>> laplacian(torch.ones(3, 3))[1, 1].item()
        0.0
    """
    k = pad(kernels, (1, 1, 1, 1))
    around = k[..., :-2, 1:-1] + k[..., 2:, 1:-1] + k[..., 1:-1, :-2] + k[..., 1:-1, 2:]
    return around - 4 * kernels


def roughness(kernels: Tensor, normalise: bool = True) -> Tensor:
    """Σ of the squared nine-point Laplacian of each kernel (eq 6), which is 0 outside.

    Args:
        kernels: (..., y, x).
        normalise: divide by 4 times the kernel's Σ W², as the authors' code does. The penalty
            then depends on the shape of a kernel and not on its size.

    Returns:
        A number.

    Example:
        >>> import torch
        >>> smooth, rough = torch.ones(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
        >>> bool(roughness(smooth) < roughness(rough))
        True
    """
    images = kernels.flatten(0, -3)[:, None]
    laplacian = torch.tensor(LAPLACIAN, dtype=kernels.dtype, device=kernels.device)
    energy = (conv2d(images, laplacian[None, None], padding=1) ** 2).sum((1, 2, 3))
    if normalise:
        power = (images**2).sum((1, 2, 3))
        energy = energy / (4 * power.clamp_min(torch.finfo(power.dtype).tiny))
    return energy.sum()


def group_sparsity(kernels: Tensor) -> Tensor:
    """Σ over pairs of a filter and a channel of the norm of its kernel.

    It makes filters read few channels. (Eq 7 prints the indices the other way round; this follows
    its explanation and the authors' code.)

    Args:
        kernels: (filter, channel, y, x).

    Returns:
        A number.

    Example:
        >>> import torch
        >>> group_sparsity(torch.full((1, 1, 2, 2), 0.5)).item()
        1.0
    """
    # A norm has no gradient at 0, so a tiny number is added.
    tiny = torch.finfo(kernels.dtype).tiny
    return ((kernels**2).sum((2, 3)) + tiny).sqrt().sum()
