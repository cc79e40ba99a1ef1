"""The order of batches in training, which is random in each epoch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from retinakit.training.frames import Batch, Frames

Item = tuple[int, Any]
"""The index of a recording, with a run of frames, single frames, or a part of a segment."""


class Batches:
    """Batches of one or several recordings, in proportion to their numbers of frames.

    Args:
        training: the training data of each recording.
        size: the number of frames in a batch.
        order: "contiguous" for runs of frames, "shuffled" for frames that are drawn individually.
        stateful: the batches of each segment are consecutive and begin with its first frame.
        seed: of the random order.

    Attributes:
        length: the number of batches in an epoch.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording(frames=200)["train"].to_dataset()
        >>> frames = Frames(train, "response", lags=5, device=torch.device("cpu"))
        >>> batches = Batches([frames], size=50, order="contiguous", stateful=False, seed=0)
        >>> recording, batch = next(batches.endless(0, 1))
        >>> batches.length, recording, batch.target.shape
        (4, 0, torch.Size([50, 2]))
    """

    def __init__(
        self, training: Sequence[Frames], size: int, order: str, stateful: bool, seed: int
    ):
        self.training, self.size, self.order = training, size, order
        self.stateful, self.seed = stateful, seed
        self.length = len(self._epoch(0))

    def endless(self, position: int, step: int) -> Iterator[tuple[int, Batch]]:
        """Iterates without end over batches, each with the index of its recording.

        Args:
            position: the number of the first batch.
            step: the distance between successive batches, for several processes.
        """
        epoch, skip = divmod(position, self.length)
        while True:
            items = self._epoch(epoch)
            for index in range(skip, len(items), step):
                number = epoch * len(items) + index
                yield self._batch(items[index], self.seed * 1_000_003 + number)
            epoch, skip = epoch + 1, (skip - self.length) % step

    def ahead(self, position: int, step: int) -> Iterator[tuple[int, Batch]]:
        """Like `endless`; if batches are read from a file, the next one is read in a thread."""
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
        """A number of evenly spaced batches, or all (None), in the order of the frames."""
        items = [
            (index, run)
            for index, frames in enumerate(self.training)
            for run in frames.runs(self.size)
        ]
        return items[:: -(-len(items) // number)] if number else items

    def frames(self) -> list[int]:
        """The number of frames of each recording in an epoch."""
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

    def _batch(self, item: Item, seed: int) -> tuple[int, Batch]:
        """The batch of an item, with a seed for trials that are drawn."""
        index, part = item
        frames = self.training[index]
        if self.order == "shuffled":
            return index, frames.windows(part, seed)
        run, begins = part if self.stateful else (part, True)
        return index, frames.batch(run, begins, seed)
