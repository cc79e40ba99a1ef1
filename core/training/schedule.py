"""The options of training: the number of steps, the learning rate and its decay."""

import math
from dataclasses import dataclass


@dataclass
class Schedule:
    """The options of training. `TorchConfig` describes each of them.

    Example:
        >>> schedule = Schedule(
        ...     steps=100,
        ...     batch=50,
        ...     learning_rate=0.01,
        ...     decay="cosine",
        ...     check_every=10,
        ...     patience=0,
        ...     drops=0,
        ...     drop_factor=0.1,
        ... )
        >>> schedule.rate(0), round(schedule.rate(50), 6)
        (0.01, 0.005)
    """

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
    stop_by: str = "validation"
    min_delta: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, without reductions by `drop_factor`."""
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate
