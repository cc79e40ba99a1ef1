"""The order of batches in training: endless epochs, each in an order of its own."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from retinakit.training.frames import Batch, Frames

Item = tuple[int, Any]
"""A recording, and a run of its frames, or frames drawn one by one, or a piece of a segment."""


class Batches:
    """Batches of one recording or several, in proportion to their frames.

    Args:
        training: the recordings.
        size: frames in a batch.
        order: "contiguous" runs of frames, or "shuffled" single frames.
        stateful: batches go through each segment from its start.
        seed: of the order.
    """

    def __init__(
        self, training: Sequence[Frames], size: int, order: str, stateful: bool, seed: int
    ):
        self.training, self.size, self.order = training, size, order
        self.stateful, self.seed = stateful, seed
        self.length = len(self._epoch(0))

    def endless(self, position: int, step: int) -> Iterator[tuple[int, Batch]]:
        """Batches with their recording, from a position on, every `step`-th of them."""
        epoch, skip = divmod(position, self.length)
        while True:
            items = self._epoch(epoch)
            for item in items[skip::step]:
                yield self._batch(item)
            epoch, skip = epoch + 1, (skip - self.length) % step

    def ahead(self, position: int, step: int) -> Iterator[tuple[int, Batch]]:
        """As `endless`; where batches come from a file, the next is read during a step."""
        batches = self.endless(position, step)
        if not any(frames.from_file for frames in self.training):
            yield from batches
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(next, batches)
            while True:
                batch = coming.result()
                coming = reader.submit(next, batches)
                yield batch

    def spread(self, number: int | None) -> list[Item]:
        """A number of batches that are spread over the data, or all of them; without a shuffle."""
        items = [
            (index, run)
            for index, frames in enumerate(self.training)
            for run in frames.runs(self.size)
        ]
        return items[:: -(-len(items) // number)] if number else items

    def frames(self) -> list[int]:
        """Frames of each recording in an epoch."""
        if self.order == "shuffled":
            return [len(frames.drawable()) for frames in self.training]
        runs = [
            [run for pieces in frames.pieces(self.size) for run in pieces]
            if self.stateful
            else frames.runs(self.size)
            for frames in self.training
        ]
        return [sum(end - start for start, end in of_one) for of_one in runs]

    def _epoch(self, epoch: int) -> list[Item]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

        def shuffled(items: Sequence[Any]) -> list[Any]:
            return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

        if self.order == "shuffled":
            items: list[Item] = []
            for index, frames in enumerate(self.training):
                drawable = torch.from_numpy(frames.drawable())
                drawn = drawable[torch.randperm(len(drawable), generator=generator)]
                items += [(index, part.numpy()) for part in drawn.split(self.size)]
            return shuffled(items)
        if self.stateful:
            segments = [
                [(index, (run, run is pieces[0])) for run in pieces]
                for index, frames in enumerate(self.training)
                for pieces in frames.pieces(self.size)
            ]
            return [item for segment in shuffled(segments) for item in segment]
        return shuffled(self.spread(None))

    def _batch(self, item: Item) -> tuple[int, Batch]:
        index, part = item
        frames = self.training[index]
        if self.order == "shuffled":
            return index, frames.windows(part)
        return index, frames.batch(*part) if self.stateful else frames.batch(part)
