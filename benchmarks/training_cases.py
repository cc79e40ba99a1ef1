"""The time of the training loop, compared with the same steps in other training loops.

The networks are Version I (single frames) and Version II (20 lags) of Yan et al. (2020) for the
simulated cell, in one thread. Both sides start with the same weights and use the same batches, so
their final weights must be equal. The peers are a loop in plain torch, and the trainer of
openretina 1.1.1 with our network, penalty and order of batches, and without validation, loggers and
checkpoints. Our time includes the preparation of the data and one validation, which are short
compared with the training steps.
"""

from functools import cache, partial
from importlib import import_module

import numpy as np
import torch
from contest import Contest

from retinakit.contracts import coordinates_of
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse
from retinakit_plugins.models.cnn import CNN

VERSIONS = {
    "v1": {"lags": 1, "filters": 4, "kernel": 7, "steps": 1000},
    "v2": {"lags": 20, "filters": 4, "kernel": 7, "steps": 300},
}


@cache
def recording(version):
    options = {"frames": 600_000, "validation_frames": 2000, "test_frames": 1000, "repeats": 2}
    movie = SubunitRGC(options).load()
    return TemporalCollapse({}).load(movie) if version == "v1" else movie


def model(version):
    options = VERSIONS[version]
    return CNN(options | {"check_every": options["steps"], "noise": 0.0, "accelerator": "cpu"})


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


def ours(version):
    fitted = model(version)
    fitted.fit(recording(version))
    return weights(fitted.module)


def beginning(version):
    """The model, its initial network, its data, and the first frame of each batch."""
    like, data = model(version), recording(version)
    split = data["train"].to_dataset()
    torch.manual_seed(0)
    module = like.build(coordinates_of(split, like.lags))
    like.initialise(module, data)
    stimulus = torch.from_numpy(split["stimulus"].values)
    counts = torch.from_numpy(split["response"].values.astype(np.float32))
    starts = torch.arange(like.lags - 1, len(stimulus), like.config.batch)
    orders = [
        torch.randperm(len(starts), generator=torch.Generator().manual_seed(epoch))
        for epoch in range(-(-like.config.steps // len(starts)))
    ]
    order = torch.cat(orders)[: like.config.steps]
    return like, module, stimulus, counts, starts[order].tolist()


def plain_torch(version):
    like, module, stimulus, counts, starts = beginning(version)
    history, batch = like.lags - 1, like.config.batch
    optimizer = torch.optim.Adam(module.parameters(), lr=like.config.learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(starts))
    stimulus = stimulus.float()
    module.train()
    for start in starts:
        target = counts[start : start + batch]
        optimizer.zero_grad()
        rate = module(stimulus[start - history : start + batch])
        loss = (rate - target * torch.log(rate + 1e-8)).mean(0).sum()
        loss = loss + like.penalty(module, rate)
        loss.backward()
        optimizer.step()
        decay.step()
    return weights(module)


def openretina(version):
    like, module, stimulus, counts, starts = beginning(version)
    history = like.lags - 1
    import_module("openretina_trainer").train(
        module,
        like.penalty,
        like.config.learning_rate,
        stimulus,
        counts,
        [start - history for start in starts],
        history + like.config.batch,
    )
    return weights(module)


def missing(peer):
    """The reason why a peer cannot run, or ""."""
    try:
        import_module("openretina_trainer" if peer is openretina else "torch")
        return ""
    except ImportError as error:
        return f"not installed ({error})"


CONTESTS = [
    # id, version, the peer
    ("training-v1-plain-torch", "v1", plain_torch),
    ("training-v1-openretina", "v1", openretina),
    ("training-v2-plain-torch", "v2", plain_torch),
    ("training-v2-openretina", "v2", openretina),
]


def contests():
    def sides(version, peer):
        torch.set_num_threads(1)
        recording(version)
        return partial(ours, version), partial(peer, version)

    return [
        Contest(
            id=name,
            group=f"training, Version {'I' * int(version[1])}",
            target=1.0,
            sides=partial(sides, version, peer),
            tolerance=1e-3,
            missing=missing(peer),
        )
        for name, version, peer in CONTESTS
    ]
