"""The convolutions of a training step of the networks of Zheng et al. (2021), against torch's.

A step has a batch of 64 windows of 20 frames of 90 x 90 pixels, which do not overlap, 128 filters
of 25 x 25 pixels and 20 lags, and 64 filters of 11 x 11 over these 128 maps, with the backward
pass. The windows need no gradient. The reduced network has 30 x 30 pixels and 16 filters of 9 x 9
and of 5 x 5. torch gets the windows as images of 20 channels, and at full size a part of the batch.
"""

from functools import cache, partial

import torch
from contest import Contest
from torch.nn.functional import conv2d

from retinakit.layers import correlate, correlate_in_time

BATCH, LAGS, PART = 64, 20, 4
SIZES = {"full": (90, (128, 25), (64, 11)), "reduced": (30, (16, 9), (16, 5))}
"Pixels of the field, and the number and size of the filters of both layers."
TARGETS = {"full": 5, "reduced": 1}
SECONDS = 4.0
"Goal for the processor time of a step at full size."


@cache
def case(size):
    """Frames, oldest first, and the filters of both layers."""
    side, (first, wide), (second, narrow) = SIZES[size]
    torch.manual_seed(0)
    frames = torch.randn(BATCH * LAGS, 1, side, side)
    kernels = torch.randn(LAGS, first, 1, wide, wide) / (LAGS**0.5 * wide)
    deeper = torch.randn(second, first, narrow, narrow) / (first**0.5 * narrow)
    return frames, kernels.requires_grad_(), deeper.requires_grad_()


def step(size, in_torch, batch=BATCH):
    """A function that does a step and returns the maps and the gradient of the first maps."""
    frames, kernels, deeper = case(size)
    windows = frames[: batch * LAGS].view(batch, LAGS, *frames.shape[-2:])

    def run():
        if in_torch:
            hidden = conv2d(windows, kernels.flip(0).transpose(0, 1).flatten(1, 2))
        else:
            hidden = correlate_in_time(windows.view(-1, 1, *frames.shape[-2:]), kernels, 1, LAGS)
        hidden.retain_grad()
        rectified = hidden.relu()
        maps = conv2d(rectified, deeper) if in_torch else correlate(rectified, deeper)
        kernels.grad = deeper.grad = None
        (maps.square() / 2).sum().backward()
        return torch.cat([maps.detach().flatten(1), hidden.grad.flatten(1)], 1).numpy()

    return run


def sides(size):
    torch.set_num_threads(1)
    return step(size, False), step(size, True, PART if size == "full" else BATCH)


def contests():
    return [
        Contest(
            id=f"movie-convolutions-{size}",
            group=f"the convolutions of a step of a network for movies, {size} size",
            target=TARGETS[size],
            sides=partial(sides, size),
            tolerance=1e-4,
            share=PART / BATCH if size == "full" else 1.0,
        )
        for size in SIZES
    ]
