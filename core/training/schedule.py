"""How long to train, and at what learning rate."""

import math
from dataclasses import dataclass


@dataclass
class Schedule:
    """How long to train, and at what learning rate. See `TorchConfig` for the meanings."""

    steps: int
    batch: int
    learning_rate: float
    decay: str
    check_every: int
    patience: int
    drops: int
    drop_factor: float
    burn_in: int = 0
    order: str = "contiguous"

    def rate(self, step: int) -> float:
        """The learning rate of a step, before any drop."""
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate
