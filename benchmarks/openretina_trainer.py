"""Trains a network as `openretina train` does, without its optional work.

Lightning's Trainer runs openretina's module and data loader, with its training step, metrics, loss
and cycler. There are no loggers, checkpoints, progress bars or validation, and one epoch.
"""

import logging
import warnings

import torch
from lightning import Trainer
from openretina.data_io.base_dataloader import get_movie_dataloader
from openretina.data_io.cyclers import LongCycler
from openretina.models.core_readout import BaseCoreReadout
from openretina.modules.core.base_core import Core
from openretina.modules.losses import PoissonLoss3d
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Network(Core):
    """A complete network as a core, from a movie (1, channel, t, y, x) to rates (1, t, cell)."""

    def __init__(self, network, penalty):
        super().__init__()
        self.network, self.penalty = network, penalty

    def forward(self, movie):
        self.rate = self.network(movie[0].transpose(0, 1).float())
        return self.rate[None]

    def regularizer(self):
        return self.penalty(self.network, self.rate)


class NoReadout(torch.nn.Module):
    def forward(self, rates, data_key):
        return rates

    def regularizer(self, data_key):
        return 0.0


class Training(BaseCoreReadout):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": decay, "interval": "step"},
        }


def train(network, penalty, learning_rate, stimulus, counts, starts, length):
    """Trains a network in place.

    Args:
        stimulus: (frame, y, x).
        counts: (frame, cell).
        starts: the first frame of each batch, in order.
        length: frames per batch, including the history of the first prediction.
    """
    # If scenes are as long as a batch, the sampler neither shifts nor shuffles the batches.
    batches = get_movie_dataloader(
        stimulus[None],
        counts,
        split="train",
        scene_length=length,
        chunk_size=length,
        batch_size=1,
        start_indices=starts,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no validation, few workers, modules as hyperparameters
        training = Training(
            Network(network, penalty), NoReadout(), learning_rate, PoissonLoss3d(1e-8, avg=True)
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            max_steps=len(starts),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(training, DataLoader(LongCycler({"cell": batches}), batch_size=None))
