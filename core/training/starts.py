"""Training of networks of the same architecture from different initial weights."""

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
    """The modules of a model, one for each recording, with their loss and penalty.

    Args:
        modules: one for each recording; they may share submodules.
        penalty: a function from a module and its prediction to a scalar.
        loss: a function from a module, its prediction (n, cell) and the target (n, cell) to the
            losses (n, cell).
        lags: the number of frames on which a prediction depends.
        stateful: whether the module has a state; see `TorchModel.stateful`.

    Example:
        >>> network = Network(
        ...     [nn.Linear(4, 2)],
        ...     penalty=lambda module, prediction: module.weight.abs().sum(),
        ...     loss=lambda module, prediction, target: (prediction - target) ** 2,
        ...     lags=1,
        ... )
        >>> frames, target, known = torch.ones(5, 4), torch.ones(5, 2), torch.ones(5, 2).bool()
        >>> losses, penalty, state = network(0, (frames,), target, known, False, None)
        >>> losses.shape, penalty.shape
        (torch.Size([2]), torch.Size([]))
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
        """Computes the loss of a batch.

        Args:
            recording: the index of the recording.
            inputs, target, known, shuffled: as in `Batch`.
            state: of the module after the previous batch, or None.

        Returns:
            The loss of each cell (cell,), summed over known frames; the penalty, a scalar; and the
            state of the module after the batch.
        """
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
    """Networks that differ only in their weights, trained on the same batches.

    Several networks are combined into one vectorised module (`torch.func`) with the weights stacked
    along a first axis. This is faster for small networks, where most of the time is the overhead of
    single operations.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        self.several, self.count = len(networks) > 1, len(networks)
        self.one = networks[0]
        if self.several:
            self.one = copy.deepcopy(self.one)  # leaves the given network unchanged
            stacked = torch.func.stack_module_state(list(networks))
            for holder, values in zip(
                (self.one.named_parameters(), self.one.named_buffers()), stacked, strict=True
            ):
                for name, tensor in holder:
                    tensor.data = values[name].detach()

    def forward(self, *batch: Any) -> tuple[Tensor, Tensor, Any]:
        """Like `Network.forward`, with losses (start, cell) and penalties (start,)."""
        if not self.several:
            losses, penalty, state = self.one(*batch)
            return losses[None], penalty[None], state

        def start(weights: State) -> tuple[Tensor, Tensor]:
            losses, penalty, _ = torch.func.functional_call(self.one, weights, batch)
            return losses, penalty

        weights = dict(self.one.named_parameters()) | dict(self.one.named_buffers())
        return *torch.vmap(start, randomness="different")(weights), None

    def states(self) -> list[State]:
        """Copies of the weights of each network."""
        state = self.one.of_recording.state_dict()
        return [
            {k: (v[i] if self.several else v).detach().clone() for k, v in state.items()}
            for i in range(self.count)
        ]

    def restore(self, states: list[State]) -> None:
        """Sets the weights of all networks to those of `states`."""
        stacked = {
            k: torch.stack([state[k] for state in states]) if self.several else v
            for k, v in states[0].items()
        }
        self.one.of_recording.load_state_dict(stacked)


def arguments(recording: int, batch: Batch, state: Any) -> tuple[Any, ...]:
    """The arguments of `Network.forward`; Fabric does not accept a frozen dataclass (`Batch`)."""
    return recording, batch.inputs, batch.target, batch.known, batch.shuffled, state
