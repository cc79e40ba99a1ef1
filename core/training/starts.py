"""Networks of one kind that are trained side by side from different starting weights."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retinakit.training.frames import Batch

Penalty = Callable[[nn.Module, Tensor], Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
State = dict[str, Tensor]


class Network(nn.Module):
    """The modules of one fit, one for each recording, with their loss and their penalty.

    Args:
        modules: one for each recording; they may have submodules in common.
        penalty: of a module and its prediction, a number.
        loss: of a module, its prediction and the target (n, cell), for each of them.
        lags: frames of history of a prediction.
        stateful: whether a module is also given the state that it returned for the frames before.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        penalty: Penalty,
        loss: Loss,
        lags: int,
        stateful: bool = False,
    ):
        super().__init__()
        self.of_recording = nn.ModuleList(modules)
        self.penalty, self.loss, self.lags, self.stateful = penalty, loss, lags, stateful
        self.takes_every = "every" in inspect.signature(modules[0].forward).parameters

    def forward(
        self,
        recording: int,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        known: Tensor,
        shuffled: bool,
        state: Any,
    ) -> tuple[Tensor, Tensor, Any]:
        """The summed loss of each cell, the penalty, and the state after these frames."""
        module = self.of_recording[recording]
        if self.stateful:
            prediction, state = module(*inputs, state)
        elif not shuffled or self.lags == 1:
            prediction = module(*inputs)
        elif self.takes_every:
            prediction = module(*inputs, every=self.lags)
        else:
            prediction = module(*inputs)[:: self.lags]
        losses = torch.where(known, self.loss(module, prediction, target), 0).sum(0)
        return losses, self.penalty(module, prediction), state


class Starts(nn.Module):
    """Networks that differ in their weights only, trained on the same batches.

    Several are one vectorised module (`torch.func`), with the weights stacked along a first axis:
    a step of a small network is mostly the overhead of many small operations, which they share.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        self.several, self.count = len(networks) > 1, len(networks)
        self.one = networks[0]
        if self.several:
            self.one = copy.deepcopy(self.one)  # one of the networks would be changed
            stacked = torch.func.stack_module_state(list(networks))
            for holder, values in zip(
                (self.one.named_parameters(), self.one.named_buffers()), stacked, strict=True
            ):
                for name, tensor in holder:
                    tensor.data = values[name].detach()

    def forward(self, *batch: Any) -> tuple[Tensor, Tensor, Any]:
        """As a network's, with the starts along a first axis: (start, cell) and (start,)."""
        if not self.several:
            losses, penalty, state = self.one(*batch)
            return losses[None], penalty[None], state

        def start(weights: State) -> tuple[Tensor, Tensor]:
            losses, penalty, _ = torch.func.functional_call(self.one, weights, batch)
            return losses, penalty

        weights = dict(self.one.named_parameters()) | dict(self.one.named_buffers())
        return *torch.vmap(start, randomness="different")(weights), None

    def states(self) -> list[State]:
        """A copy of each network's weights."""
        state = self.one.of_recording.state_dict()
        return [
            {k: (v[i] if self.several else v).detach().clone() for k, v in state.items()}
            for i in range(self.count)
        ]

    def restore(self, states: list[State]) -> None:
        """Takes the weights of `states`, and leaves the rest as it is."""
        stacked = {
            k: torch.stack([state[k] for state in states]) if self.several else v
            for k, v in states[0].items()
        }
        self.one.of_recording.load_state_dict(stacked)


def arguments(recording: int, batch: Batch, state: Any) -> tuple[Any, ...]:
    """What `Network.forward` is given; Fabric wants plain arguments."""
    return recording, batch.inputs, batch.target, batch.known, batch.shuffled, state
