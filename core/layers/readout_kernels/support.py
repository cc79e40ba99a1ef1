"""The entries of the masks that are used, sorted for the sparse kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinakit.contracts.errors import UserError
from retinakit.layers.readout_kernels.take import take

BLOCK = 16
"""Slots in a block on a GPU, which share their features; must equal the constant in the kernels."""


class Slots(NamedTuple):
    """The arguments of the kernels: the structure of a support, with values and weights.

    Attributes:
        values: (entry,) of the masks.
        weight: (channel, neuron).

    The other attributes are those of `Support`.
    """

    position_start: Tensor
    slot: Tensor
    start: Tensor
    position: Tensor
    by_slot: Tensor
    neuron: Tensor
    values: Tensor
    weight: Tensor
    blocks: Sequence[Tensor]

    @classmethod
    def of(cls, values: Tensor, weight: Tensor, structure: Sequence[Tensor]) -> "Slots":
        """Combines values (entry,), weights (channel, neuron) and `Support.structure`."""
        position_start, slot, start, position, by_slot, neuron, *blocks = structure
        return cls(
            position_start,
            slot,
            start,
            position,
            by_slot,
            neuron,
            values.contiguous(),
            weight.contiguous(),
            blocks,
        )

    def values_by_slot(self) -> Tensor:
        """The values, in the order of `position`."""
        return self.values.index_select(0, self.by_slot)

    def by_entry(self, numbers: Tensor) -> Tensor:
        """Reorders numbers (entry,) from the order of `position` to that of `values`."""
        return torch.empty_like(numbers).index_copy_(0, self.by_slot, numbers)

    def weight_by_slot(self) -> Tensor:
        """The weights, as (slot, channel)."""
        return self.weight.index_select(1, self.neuron).T.contiguous()

    def by_neuron(self, weight: Tensor) -> Tensor:
        """Reorders weights from (slot, channel) to (channel, neuron)."""
        return torch.empty_like(self.weight).index_copy_(1, self.neuron, weight.T)


@dataclass(frozen=True, eq=False)
class Support:
    """The entries of masks (position, neuron) that may differ from 0.

    Build it with `Support.of` and reuse it while these entries do not change: building takes as
    long as several training steps.

    Neurons are sorted by the mean positions of their masks, so that neighbours use the same
    features. The "slot" of a neuron is its index in this order.

    Entries are sorted by position and then by slot, which is close to their order in the memory of
    the masks; sorted by slot first, consecutive entries would be far apart in memory.

    Attributes:
        inside: (position, neuron) bool.
        entry: (entry,) int64, indices into the flattened masks.
        indices: (2, entry) int64, positions and neurons.
        position_start: (position + 1,) int64, index of the first entry of each position.
        slot: (entry,) int32, the slot of each entry.
        start: (neuron + 1,) int64, index of the first entry of each slot in `position` and
            `by_slot`.
        position: (entry,) int32, the positions, sorted by slot and then position.
        by_slot: (entry,) int64, the index in `entry` of each element of `position`.
        neuron: (neuron,) int64, the neuron of each slot.
        blocks: three arrays for blocks of `BLOCK` slots on a GPU: (entry,) int32, the index of each
            element of `position` among the positions of its block; (block + 1,) int64, the index of
            the first position of each block; int32, the positions used by the slots of each block.
            They are empty on the CPU.

    Example:
        >>> support = Support.of(torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]))
        >>> support.entry.tolist(), support.density
        ([0, 4, 5], 0.5)
    """

    inside: Tensor
    entry: Tensor
    indices: Tensor
    position_start: Tensor
    slot: Tensor
    start: Tensor
    position: Tensor
    by_slot: Tensor
    neuron: Tensor
    blocks: tuple[Tensor, ...]

    @classmethod
    def of(cls, mask: Tensor) -> "Support":
        """Builds the support of masks.

        Args:
            mask: (position, neuron), bool, or numbers whose nonzero entries form the support.

        Raises:
            UserError: if `mask` does not have two dimensions.
        """
        if mask.ndim != 2:
            raise UserError(
                f"'mask' has the shape {tuple(mask.shape)}; give it as (position, neuron)"
            )
        inside = mask.detach() != 0
        positions, neurons = inside.shape
        neuron = _mean_positions(inside).argsort(stable=True)
        position, slot = inside.index_select(1, neuron).nonzero(as_tuple=True)
        by_slot = slot.argsort(stable=True)
        across = position[by_slot]
        return cls(
            inside,
            position * neurons + neuron[slot],
            torch.stack([position, neuron[slot]]),
            _starts(position, positions),
            slot.int(),
            _starts(slot, neurons),
            across.int(),
            by_slot,
            neuron,
            _blocks(slot[by_slot], across, neurons, positions)
            if mask.is_cuda
            else tuple(slot.new_empty(0) for _ in range(3)),
        )

    @property
    def density(self) -> float:
        """The fraction of the entries that may differ from 0."""
        return len(self.entry) / max(1, self.inside.numel())

    @property
    def structure(self) -> list[Tensor]:
        """The arguments of the sparse readout, in the order of the attributes of `Slots`."""
        return [
            self.position_start,
            self.slot,
            self.start,
            self.position,
            self.by_slot,
            self.neuron,
            *self.blocks,
        ]

    def values(self, mask: Tensor, sparse_gradient: bool = False) -> Tensor:
        """The values of masks at the entries of the support.

        Args:
            mask: (position, neuron), dense, or a sparse gradient.
            sparse_gradient: whether the gradient of the masks is a sparse tensor.

        Returns:
            (entry,).

        Raises:
            UserError: if the shape of the masks differs from that of the support.
        """
        if mask.shape != self.inside.shape:
            raise UserError(
                f"'mask' has the shape {tuple(mask.shape)}, and the support was made for "
                f"{tuple(self.inside.shape)}; make one with Support.of(mask)"
            )
        if mask.is_sparse:
            position, neuron = mask._indices()
            if torch.equal(position * mask.shape[1] + neuron, self.entry):
                return mask._values()
            mask = mask.to_dense()
        if sparse_gradient:
            values: Tensor = _Values.apply(mask, self)
            return values
        return mask.flatten().index_select(0, self.entry)


class _Values(torch.autograd.Function):
    """`Support.values` with a sparse gradient."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, support: Support) -> Tensor:
        ctx.support = support
        return take(mask, support.entry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        support: Support = ctx.support
        size = support.inside.shape
        return torch.sparse_coo_tensor(
            support.indices, gradient, size, check_invariants=False
        ), None


def _mean_positions(inside: Tensor) -> Tensor:
    """The mean row of the true entries of each column; the number of rows if there are none."""
    position, column = inside.nonzero(as_tuple=True)
    mean = torch.full(inside.shape[1:], float(len(inside)), device=inside.device).double()
    return mean.scatter_reduce_(0, column, position.double(), "mean", include_self=False)


def _starts(row: Tensor, rows: int) -> Tensor:
    """The index of the first entry of each row after sorting by `row`."""
    start = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=rows), 0, out=start[1:])
    return start


def _blocks(slot: Tensor, position: Tensor, neurons: int, positions: int) -> tuple[Tensor, ...]:
    """Computes `Support.blocks` from the slot and the position of each entry."""
    shared, place = torch.unique(slot // BLOCK * positions + position, return_inverse=True)
    start = _starts(shared // max(1, positions), -(-neurons // BLOCK))
    return (place - start[slot // BLOCK]).int(), start, (shared % max(1, positions)).int()
