"""What the training loop costs: the same steps of the same network in a loop of plain torch.

Version I (single frames) and Version II (20 lags) of Yan et al. (2020) on the simulated cell, one
thread. Both sides begin with the same weights and see the same batches, so their weights must be
the same in the end.
"""

from functools import cache

import numpy as np
import torch
from contest import Contest

from retinakit.torch_model import coordinates_of
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse
from retinakit_plugins.models.cnn import CNN

STEPS = 300
VERSIONS = {
    "v1": {"lags": 1, "filters": 4, "kernel": 7},
    "v2": {"lags": 20, "filters": 4, "kernel": 7},
}


@cache
def recording(version):
    options = {"frames": 600_000, "validation_frames": 2000, "test_frames": 1000, "repeats": 2}
    movie = SubunitRGC(options).load()
    return TemporalCollapse({}).load(movie) if version == "v1" else movie


def model(version):
    options = {"steps": STEPS, "check_every": STEPS, "noise": 0.0, "accelerator": "cpu"}
    return CNN(VERSIONS[version] | options)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


def ours(version):
    fitted = model(version)
    fitted.fit(recording(version))
    return weights(fitted.module)


def plain_torch(version):
    like, data = model(version), recording(version)
    split = data["train"].to_dataset()
    lags, batch = like.lags, like.config.batch
    torch.manual_seed(0)
    module = like.build(coordinates_of(split, lags))
    like.initialise(module, data)
    optimizer = torch.optim.Adam(module.parameters(), lr=like.config.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stimulus = torch.from_numpy(np.asarray(split["stimulus"].values, np.float32))
    counts = torch.from_numpy(split["response"].values.astype(np.float32))
    starts = torch.arange(lags - 1, len(stimulus), batch)
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
    module.train()
    for start in starts[order[:STEPS]].tolist():
        target = counts[start : start + batch]
        optimizer.zero_grad()
        rate = module(stimulus[start - lags + 1 : start + batch])
        loss = (rate - target * torch.log(rate + 1e-8)).mean() + like.penalty(module)
        loss.backward()
        optimizer.step()
        decay.step()
    return weights(module)


def contests():
    def sides(version):
        torch.set_num_threads(1)
        recording(version)
        return lambda: ours(version), lambda: plain_torch(version)

    return [
        Contest(
            id=f"training/{version}/plain_torch",
            group=f"training, Version {'I' * int(version[1])}",
            target=1.0,
            sides=lambda version=version: sides(version),
            tolerance=1e-3,
        )
        for version in VERSIONS
    ]
