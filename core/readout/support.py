"""Which entries of the masks are used, sorted for the sparse kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retinakit.errors import UserError

BLOCK = 16
"""Slots that share features on a GPU, as in the kernels."""


class Slots(NamedTuple):
    """The attributes of `Support` that are not flattened masks, and what the slots hold.

    Attributes:
        values: (entry,) of the masks.
        weight: (slot, channel).
        blocks: as in `Support`.
    """

    start: Tensor
    position: Tensor
    neuron: Tensor
    position_start: Tensor
    slot: Tensor
    by_position: Tensor
    values: Tensor
    weight: Tensor
    blocks: Sequence[Tensor]

    @classmethod
    def of(cls, values: Tensor, weight: Tensor, structure: Sequence[Tensor]) -> "Slots":
        """From the values, weights (channel, neuron) and `Support.structure`."""
        by_slot = weight.index_select(1, structure[2]).T.contiguous()
        start, position, neuron, position_start, slot, by_position, *blocks = structure
        return cls(
            start,
            position,
            neuron,
            position_start,
            slot,
            by_position,
            values.contiguous(),
            by_slot,
            blocks,
        )


@dataclass(frozen=True, eq=False)
class Support:
    """The entries of masks (position, neuron) that may differ from 0.

    Build it with `Support.of` and keep it as long as these entries stay the same: building takes
    as long as some steps of training.

    Neurons are gone through in the order of the mean positions of their masks, so that those that
    follow each other read the same features. "Slot" is a neuron's place in this order.

    Attributes:
        inside: (position, neuron) bool.
        entry: (entry,) int64, where in the flattened masks, by slot and then position.
        start: (neuron + 1,) int64, where the entries of each slot begin.
        position: (entry,) int32.
        neuron: (neuron,) int64, of each slot.
        position_start: (position + 1,) int64, where those of a position begin in the next two.
        slot: (entry,) int32, by position and then slot.
        by_position: (entry,) int64, the entry that each of these is.
        blocks: on a GPU, what `BLOCK` slots share: (entry,) int32, each entry's place among the
            positions of its block; (block + 1,) int64, where the positions of each block begin in
            the next; int32, the positions that any slot of a block has. Nothing on the CPU.
    """

    inside: Tensor
    entry: Tensor
    start: Tensor
    position: Tensor
    neuron: Tensor
    position_start: Tensor
    slot: Tensor
    by_position: Tensor
    blocks: tuple[Tensor, ...]

    @classmethod
    def of(cls, mask: Tensor) -> "Support":
        """The support of masks.

        Args:
            mask: (position, neuron), numbers, of which the nonzero ones are taken, or bool.

        Raises:
            UserError: if it has another number of dimensions.
        """
        if mask.ndim != 2:
            raise UserError(
                f"'mask' has the shape {tuple(mask.shape)}; give it as (position, neuron)"
            )
        inside = mask.detach() != 0
        positions, neurons = inside.shape
        position, neuron = inside.nonzero(as_tuple=True)
        mean = torch.full((neurons,), float(positions), dtype=torch.float64, device=mask.device)
        mean.scatter_reduce_(0, neuron, position.double(), "mean", include_self=False)
        order = mean.argsort(stable=True)
        slot = torch.empty_like(order)
        slot[order] = torch.arange(neurons, device=mask.device)
        slot = slot[neuron]
        by_slot = slot.argsort(stable=True)
        place = torch.empty_like(by_slot)
        place[by_slot] = torch.arange(len(by_slot), device=mask.device)
        by_position = (position * neurons + slot).argsort()
        return cls(
            inside,
            (position * neurons + neuron)[by_slot],
            _starts(slot, neurons),
            position[by_slot].int(),
            order,
            _starts(position, positions),
            slot[by_position].int(),
            place[by_position],
            _blocks(slot[by_slot], position[by_slot], neurons, positions) if mask.is_cuda else (),
        )

    @property
    def density(self) -> float:
        """The part of the entries that may differ from 0."""
        return len(self.entry) / max(1, self.inside.numel())

    @property
    def structure(self) -> list[Tensor]:
        """What the sparse readout needs; the first attributes of `Slots`."""
        return [
            self.start,
            self.position,
            self.neuron,
            self.position_start,
            self.slot,
            self.by_position,
            *self.blocks,
        ]

    def values(self, mask: Tensor) -> Tensor:
        """The entries of the masks, (entry,)."""
        return mask.flatten().index_select(0, self.entry)


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where each row begins once the entries, of which `row` tells the row, are sorted by it."""
    start = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=rows), 0, out=start[1:])
    return start


def _blocks(slot: Tensor, position: Tensor, neurons: int, positions: int) -> tuple[Tensor, ...]:
    """`Support.blocks`, from the slot and the position of each entry."""
    shared, place = torch.unique(slot // BLOCK * positions + position, return_inverse=True)
    start = _starts(shared // max(1, positions), -(-neurons // BLOCK))
    return (place - start[slot // BLOCK]).int(), start, (shared % max(1, positions)).int()
