"""A split of a recording, held for training: batches of frames with what is to be predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from retinakit.contracts.errors import RecordingError
from retinakit.contracts.frame_blocks import blocks
from retinakit.contracts.recording import as_response, full_history, mean_response, segments

IN_MEMORY = 2**30
"""Bytes up to which a stimulus that lies in a file is held in memory."""

CHUNKS_HELD = 2**28
"""Bytes of a compressed file's chunks that are kept after they were read."""

COMPRESSIONS = ("compression", "zlib", "zstd", "blosc", "szip", "bzip2")
"""The words in xarray's encoding for a file that is compressed."""

Run = tuple[int, int]
"""The first frame of a batch, and the one after its last."""


@dataclass(frozen=True)
class Batch:
    """Frames with their history, and what is to be predicted in them.

    Attributes:
        inputs: what the module is given: the frames (n + lags - 1, [channel,] y, x), oldest first,
            and perhaps the covariates (n + lags - 1, covariate). In shuffled order, the histories
            of the n frames one after another: (n · lags, ...).
        target: (n, cell), 0 where unknown.
        known: (n, cell), false where unknown.
        shuffled: whether the frames were drawn one by one.
        begins: whether a segment begins here, for a module with a state.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    known: Tensor
    shuffled: bool = False
    begins: bool = True


class Frames:
    """A split to be trained on, or validated on.

    A stimulus that is in memory stays there, and one in a file is read if it is not large. Of a
    large one, two values are held as bits, an eighth of a byte each; any other stays in its file,
    and its frames are read when a batch needs them. What fits on the training device is held there.

    Args:
        split: of a recording.
        target: "response" (its mean over repeats) or "rate".
        lags: frames of history of a prediction, its own frame included.
        device: where batches are needed.
        inputs: "stimulus", and "covariates" for a module that takes covariates.

    Attributes:
        known: (frame, cell), false where unknown or without a full history.
        from_file: whether batches are read from a file.

    Raises:
        RecordingError: if the split lacks the target or the covariates, or has no frame with a
            response and a full history.
    """

    def __init__(
        self,
        split: xr.Dataset,
        target: str,
        lags: int,
        device: torch.device,
        inputs: Sequence[str] = ("stimulus",),
    ):
        values = np.asarray(mean_response(as_response(split, target)), dtype=np.float32)
        self.lags, self.device = lags, device
        self.full = full_history(split["segment"], lags)
        known = np.isfinite(values) & self.full[:, None]
        if not known.any():
            raise RecordingError(
                f"no frame has a response and {lags} frames of history in its segment; "
                "use fewer lags or longer segments"
            )
        self.target = torch.from_numpy(np.where(known, values, np.float32(0))).to(device)
        self.known = torch.from_numpy(known).to(device)
        self.segments = segments(split)
        self.from_file = False
        self._frames = self._reader(split["stimulus"])
        self._covariate: Tensor | None = None
        if "covariates" in inputs:
            self._covariate = _covariates(split).to(device)

    def __len__(self) -> int:
        return len(self.target)

    def runs(self, length: int) -> list[Run]:
        """Runs of at most `length` frames in which any frame has a full history.

        They follow from segments and lags alone, so that a cell is fitted on the same batches
        whatever other cells have responses where.
        """
        starts = range(self.lags - 1, len(self), length)
        runs = [(start, min(start + length, len(self))) for start in starts]
        return [run for run in runs if self.full[slice(*run)].any()]

    def pieces(self, length: int) -> list[list[Run]]:
        """Of each segment, its frames with a full history in pieces of at most `length`."""
        found = []
        for segment in self.segments:
            starts = range(segment.start + self.lags - 1, segment.stop, length)
            found.append([(start, min(start + length, segment.stop)) for start in starts])
        return [pieces for pieces in found if pieces]

    def drawable(self) -> NDArray[np.int64]:
        """The frames in which a response of any cell is known."""
        return np.flatnonzero(self.known.any(1).cpu().numpy())

    def batch(self, run: Run, begins: bool = True) -> Batch:
        """The frames of a run with the history before it."""
        start, end = run
        history = slice(start - self.lags + 1, end)
        return Batch(
            self._inputs(history), self.target[start:end], self.known[start:end], begins=begins
        )

    def windows(self, frames: NDArray[np.int64]) -> Batch:
        """Frames drawn one by one, with the history of each; all of them have a full one."""
        at = torch.from_numpy(frames).to(self.device)
        history = at[:, None] + torch.arange(1 - self.lags, 1, device=self.device)
        inputs = self._inputs(history.flatten())
        return Batch(inputs, self.target[at], self.known[at], shuffled=True)

    def _inputs(self, frames: slice | Tensor) -> tuple[Tensor, ...]:
        inputs = (self._frames(frames).to(self.device, torch.float32),)
        return inputs if self._covariate is None else (*inputs, self._covariate[frames])

    def _reader(self, stimulus: xr.DataArray) -> Callable[[slice | Tensor], Tensor]:
        """Gives frames of a stimulus."""
        # xarray has no public word for what is in memory already.
        if stimulus.variable._in_memory or stimulus.nbytes <= IN_MEMORY:
            held = _placed(torch.from_numpy(_compact(stimulus.values)), self.device)
            return lambda frames: held[_on(held, frames)]
        if stimulus.size / 8 <= IN_MEMORY:
            packed = _packed(stimulus)
            if packed is not None:
                return packed
        self.from_file = True
        return _FileReader(stimulus)


def _placed(held: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, if it takes no more than half of what is free there."""
    if device.type == "cuda" and held.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return held
    return held.to(device)


def _on(held: Tensor, frames: slice | Tensor) -> slice | Tensor:
    return frames.to(held.device) if isinstance(frames, Tensor) else frames


class _FileReader:
    """Gives frames of a stimulus that stays in its file.

    Of a compressed file whole chunks are read, and the last ones are kept, so that a chunk is not
    decompressed again for the next batch, or for each of several frames in it.
    """

    def __init__(self, stimulus: xr.DataArray):
        self.variable = stimulus.variable  # without the coordinates, which would be read too
        encoding, frame_bytes = stimulus.encoding, stimulus.nbytes // len(stimulus)
        self.length = 0
        if any(encoding.get(name) for name in COMPRESSIONS):
            self.length = encoding.get("preferred_chunks", {}).get("frame", 0)
        held = CHUNKS_HELD // max(1, self.length * frame_bytes)
        if held < 2:
            self.length = 0
        self._chunk = lru_cache(held)(self._read_chunk)

    def __call__(self, frames: slice | Tensor) -> Tensor:
        """A run of frames, or windows one after another, each of which is a run."""
        if isinstance(frames, slice):
            return torch.from_numpy(_compact(self._run(frames.start, frames.stop)))
        numbers = frames.cpu().numpy()
        first = np.flatnonzero(np.r_[True, np.diff(numbers) != 1])
        runs = zip(numbers[first], [*first[1:], len(numbers)] - first, strict=True)
        read = [self._run(int(start), int(start + length)) for start, length in runs]
        return torch.from_numpy(_compact(np.concatenate(read)))

    def _run(self, start: int, end: int) -> NDArray[Any]:
        if not self.length:
            values: NDArray[Any] = self.variable[start:end].values
            return values
        chunks = range(start // self.length, -(-end // self.length))
        first = chunks.start * self.length
        parts = [self._chunk(index) for index in chunks]
        # The ends are cut first: the middle of a run is copied once.
        parts[-1] = parts[-1][: end - chunks[-1] * self.length]
        parts[0] = parts[0][start - first :]
        return np.concatenate(parts)

    def _read_chunk(self, index: int) -> NDArray[Any]:
        values: NDArray[Any] = self.variable[index * self.length : (index + 1) * self.length].values
        return values


def _packed(stimulus: xr.DataArray) -> Callable[[slice | Tensor], Tensor] | None:
    """Gives frames of a stimulus of two values, which is held as bits; None if it has a third."""
    low = high = None
    parts = []
    for part in blocks(stimulus):
        values = stimulus[part].values
        low = values.min() if low is None else min(low, values.min())
        high = values.max() if high is None else max(high, values.max())
        bits = values == high
        if not (bits | (values == low)).all():
            return None
        parts.append((high, np.packbits(bits.reshape(len(bits), -1), axis=1)))
    if any(of_part != high for of_part, _ in parts):  # a block of one value came first
        return None
    held = np.concatenate([packed for _, packed in parts])
    shape, pixels = stimulus.shape[1:], int(np.prod(stimulus.shape[1:]))

    def unpack(frames: slice | Tensor) -> Tensor:
        chosen = frames if isinstance(frames, slice) else frames.cpu().numpy()
        bits = np.unpackbits(held[chosen], axis=1, count=pixels).reshape(-1, *shape)
        return torch.from_numpy(np.where(bits, np.float32(high), np.float32(low)))

    return unpack


def _compact(stimulus: NDArray[Any]) -> NDArray[Any]:
    """A stimulus in its own type if that is small and known to torch, otherwise in float32."""
    stimulus = np.ascontiguousarray(stimulus)
    if stimulus.dtype in (np.bool_, np.int8, np.uint8, np.int16):
        return stimulus
    return stimulus.astype(np.float32, copy=False)


def _covariates(split: xr.Dataset) -> Tensor:
    """(frame, covariate) float32."""
    if "covariates" not in split:
        raise RecordingError(
            "the model takes covariates and the recording has none; add 'covariates' (frame, "
            "covariate) to every split"
        )
    return torch.from_numpy(np.asarray(split["covariates"], dtype=np.float32))
