"""Training the linear network of Klindt et al.: a step against plain torch, and 5,000 neurons.

The step is that of Fig 3 with 100 neurons: one 17 x 17 kernel on one channel, batch normalisation,
masks, and the optimizer, in one thread. The peer uses torch's convolution. Both sides do the same
steps from the same weights, and their final weights must be equal.

The population of 5,000 neurons is trained with exact zeros and, for comparison, with dense masks,
with the same network, data and number of steps in two threads. The best validation losses must be
equal within the tolerance.
"""

import os
import subprocess
import sys
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import torch
from contest import Contest, MemoryContest, peak_megabytes
from torch.nn.functional import batch_norm, conv2d

from retinakit.contracts import coordinates_of
from retinakit_plugins.datasets.linear_population import LinearPopulation
from retinakit_plugins.models.what_where import WhatWhere

LINEAR = {
    "kernels": [17],
    "activation": "identity",
    "output": "identity",
    "loss": "mse",
    "offset": False,
    "bias": False,
    "accelerator": "cpu",
}
STEPS = 3
LARGE = {
    "filters": [2],
    "normalisation": "unit",
    "positive_weight": True,
    "mask_l1": 0.01,
    "weight_l1": 0.01,
    "learning_rate": 0.003,
    "decay": "cosine",
    "steps": 400,
    "check_every": 200,
}


@cache
def step_case():
    """The network, and its stimulus and responses."""
    model = WhatWhere(LINEAR | {"filters": [1], "mask_l1": 0.1})
    recording = LinearPopulation({"cells": 100, "samples": 1024, "test": 10}).load()
    split = recording["train"].to_dataset().isel(frame=slice(model.config.batch))
    torch.manual_seed(0)
    module = model.build(coordinates_of(split, 1))
    model.initialise(module, recording)
    frames, target = (torch.from_numpy(split[name].values) for name in ("stimulus", "response"))
    return model, module, frames, target


def steps(respond, penalty, module):
    """Trains a module from given kernels and masks, and returns the final ones."""
    _, _, frames, target = step_case()
    module = deepcopy(module).train()
    parameters = [module.core.kernel[0], module.readout.mask]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        response = respond(module, frames)
        loss = (response - target).square().mean(0).sum() + penalty(module, response)
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters]).numpy()


def plain_response(module, frames):
    maps = conv2d(frames[:, None], module.core.kernel[0][0])
    maps = batch_norm(maps, None, None, training=True)
    return maps.flatten(1) @ module.readout.mask


def step_sides():
    torch.set_num_threads(1)
    model, module, *_ = step_case()
    weight = model.config.mask_l1
    return (
        partial(steps, lambda module, frames: module(frames), model.penalty, module),
        partial(
            steps,
            plain_response,
            lambda module, response: weight * module.readout.mask.abs().sum(),
            module,
        ),
    )


@cache
def population():
    two_types = {"types": [0.6, 1.0], "heterogeneity": 0.05, "centred": False}
    return LinearPopulation(two_types | {"cells": 5000, "samples": 4096, "test": 10}).load()


def best_loss(exact_zeros, **options):
    model = WhatWhere(LINEAR | LARGE | {"exact_zeros": exact_zeros} | options)
    return model.fit(population())["best_validation_loss"].values


def memory(exact_zeros: bool) -> float:
    """Peak megabytes of a fit in a separate process, including one refresh of the support."""
    # Freed arrays of 1 MB or more are returned to the system at once, so only memory in use counts.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    code = f"import population_cases; print(population_cases.peak({exact_zeros}))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, check=True, stdout=subprocess.PIPE
    )
    return float(result.stdout.split()[-1])


def peak(exact_zeros: bool) -> float:
    torch.set_num_threads(1)
    population()
    few = {"steps": 60, "check_every": 60}
    return peak_megabytes(partial(best_loss, exact_zeros, **few))


def population_sides():
    torch.set_num_threads(2)
    population()
    return partial(best_loss, True), partial(best_loss, False)


def contests():
    return [
        Contest(
            "population-linear-step-plain-torch",
            "a step of the linear network: 100 neurons, 256 images of 48 x 48, a 17 x 17 kernel",
            4,
            step_sides,
            1e-3,
        ),
        Contest(
            "population-5000-dense",
            f"5,000 neurons, {LARGE['steps']} steps with exact zeros and with dense masks, "
            "two threads",
            1,
            population_sides,
            2e-4,
        ),
    ]


def memory_contests():
    return [
        MemoryContest("population-5000-memory", 1, lambda: (memory(True), memory(False))),
    ]
