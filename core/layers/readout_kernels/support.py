"""Which entries of the masks are used, sorted for the sparse kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinakit.contracts.errors import UserError
from retinakit.layers.readout_kernels.take import take

BLOCK = 16
"""Slots in a block on a GPU, whose features are shared; the same number as in the kernels."""


class Slots(NamedTuple):
    """The arrays that the kernels take: the structure of a support, and its values and weights.

    Attributes:
        values: (entry,) of the masks.
        weight: (channel, neuron).
        blocks: as in `Support`.
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
        """From the values, weights (channel, neuron) and `Support.structure`."""
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
        """The values in the order of `position`."""
        return self.values.index_select(0, self.by_slot)

    def by_entry(self, numbers: Tensor) -> Tensor:
        """The inverse: from the order of `position` to the order of the values."""
        return torch.empty_like(numbers).index_copy_(0, self.by_slot, numbers)

    def weight_by_slot(self) -> Tensor:
        """The weights as (slot, channel)."""
        return self.weight.index_select(1, self.neuron).T.contiguous()

    def by_neuron(self, weight: Tensor) -> Tensor:
        """The inverse: (channel, neuron) from (slot, channel)."""
        return torch.empty_like(self.weight).index_copy_(1, self.neuron, weight.T)


@dataclass(frozen=True, eq=False)
class Support:
    """The entries of masks (position, neuron) that may differ from 0.

    Build it with `Support.of` and keep it as long as these entries stay the same: building takes
    as long as some steps of training.

    Neurons are sorted by the mean positions of their masks, so that neighbours read the same
    features. A "slot" is a neuron's place in this order.

    Entries are sorted by position and then by slot, which is nearly their order in the memory of
    the masks; sorted by slot, consecutive entries would lie far apart.

    Attributes:
        inside: (position, neuron) bool.
        entry: (entry,) int64, index into the flattened masks.
        indices: (2, entry) int64, their positions and neurons.
        position_start: (position + 1,) int64, where the entries of each position begin.
        slot: (entry,) int32.
        start: (neuron + 1,) int64, where the entries of each slot begin in `position` and
            `by_slot`.
        position: (entry,) int32, by slot and then position.
        by_slot: (entry,) int64, the number of each entry of `position`.
        neuron: (neuron,) int64, the neuron of each slot.
        blocks: on a GPU, for blocks of `BLOCK` slots: (entry,) int32, the place of each entry of
            `position` among the positions of its block; (block + 1,) int64, where the positions
            of each block begin; int32, the positions that the slots of each block use. Empty on
            the CPU.
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
        """The support of masks.

        Args:
            mask: (position, neuron), bool, or numbers of which the nonzero ones are used.

        Raises:
            UserError: if it has another number of dimensions.
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
        """The part of the entries that may differ from 0."""
        return len(self.entry) / max(1, self.inside.numel())

    @property
    def structure(self) -> list[Tensor]:
        """What the sparse readout needs; the first attributes of `Slots`."""
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
        """The entries of the masks, (entry,).

        Args:
            mask: (position, neuron), dense, or sparse as a gradient is.
            sparse_gradient: whether the gradient of the masks is a sparse tensor.

        Raises:
            UserError: if the masks have another shape than those of the support.
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
    """The mean row of each column; the number of rows for an empty column."""
    position, column = inside.nonzero(as_tuple=True)
    mean = torch.full(inside.shape[1:], float(len(inside)), device=inside.device).double()
    return mean.scatter_reduce_(0, column, position.double(), "mean", include_self=False)


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where each row begins after the entries are sorted by `row`."""
    start = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=rows), 0, out=start[1:])
    return start


def _blocks(slot: Tensor, position: Tensor, neurons: int, positions: int) -> tuple[Tensor, ...]:
    """`Support.blocks`, from the slot and the position of each entry."""
    shared, place = torch.unique(slot // BLOCK * positions + position, return_inverse=True)
    start = _starts(shared // max(1, positions), -(-neurons // BLOCK))
    return (place - start[slot // BLOCK]).int(), start, (shared % max(1, positions)).int()
