"""Training data: batches of frames of a split, with the responses to be predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from retinakit.contracts.bits import pack_two_values
from retinakit.contracts.errors import RecordingError
from retinakit.contracts.frame_blocks import blocks
from retinakit.contracts.recording import as_response, full_history, mean_over_repeats, segments

IN_MEMORY = 2**30
"""Maximum size in bytes of a stimulus that is read from its file into memory."""

CHUNKS_HELD = 2**28
"""Size in bytes of the cache of chunks of a compressed file."""

PIECE = 2**22
"""Size in bytes of the pieces in which a block is packed, which fit into the processor's cache."""

COMPRESSIONS = ("compression", "zlib", "zstd", "blosc", "szip", "bzip2")
"""The keys of xarray's encoding that indicate a compressed file."""

Run = tuple[int, int]
"""The first frame of a batch, and the frame after the last one."""


@dataclass(frozen=True)
class Batch:
    """A batch of n frames with their history, and the responses to be predicted.

    Attributes:
        inputs: the arguments of the module: the frames (n + lags - 1, [channel,] y, x), oldest
            first, and, if the model has covariates, these (n + lags - 1, covariate). In shuffled
            order, they are the concatenated histories of the n frames, (n · lags, ...). For a
            module that takes bits, the frames may be bits (n, byte) uint8, which are followed by
            the two values of the stimulus (2,).
        target: (n, cell), the responses, 0 where unknown.
        known: (n, cell) bool, whether the response is known.
        shuffled: whether the frames were drawn individually.
        begins: whether the batch begins with the first frames of a segment, for a module with a
            state.

    Example:
        >>> target = torch.tensor([[1.0], [0.0]])
        >>> batch = Batch((torch.zeros(6, 8, 8),), target, known=torch.ones(2, 1).bool())
        >>> batch.inputs[0].shape[0] - len(batch.target) + 1  # lags
        5
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    known: Tensor
    shuffled: bool = False
    begins: bool = True


class Frames:
    """The data of a split for training or validation.

    A stimulus in a file is read into memory if it is small. A large one with two values is stored
    in memory as bits. Any other large stimulus stays in its file, and its frames are read for each
    batch. The data are stored on the training device if they fit.

    Args:
        split: of a recording.
        target: "response" (its mean over repeats) or "rate".
        lags: the number of frames on which a prediction depends.
        device: the device of the batches.
        inputs: ("stimulus",), or ("stimulus", "covariates") for a module with covariates.
        packed: whether the module takes a two-valued stimulus as bits; see `TorchModel.packed`.
        trials: of a response with repeats, "mean"; "single" for the last trial, clipped to 0 and 1
            as in the script of Zheng et al. (2021); or "all" for a trial that is drawn for each
            frame of a batch.

    Attributes:
        target: (frame, cell) float32, 0 where unknown. With trials "all", the mean.
        known: (frame, cell) bool, false where unknown or without a full history.
        from_file: whether batches are read from a file.

    Raises:
        RecordingError: if the split lacks the target, the covariates or the repeats for single
            trials, or has no frame with a response and a full history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording(frames=200)["train"].to_dataset()
        >>> frames = Frames(train, "response", lags=5, device=torch.device("cpu"))
        >>> batch = frames.batch((4, 54))
        >>> batch.inputs[0].shape, batch.target.shape
        (torch.Size([54, 8, 8]), torch.Size([50, 2]))
    """

    def __init__(
        self,
        split: xr.Dataset,
        target: str,
        lags: int,
        device: torch.device,
        inputs: Sequence[str] = ("stimulus",),
        packed: bool = False,
        trials: str = "mean",
    ):
        response = as_response(split, target)["response"]
        if trials != "mean" and "repeat" not in response.dims:
            raise RecordingError(
                f"trials is '{trials}' and the training responses have no repeats; set trials: mean"
            )
        if trials == "single":
            response = response.isel(repeat=-1).clip(0, 1)
        values = np.asarray(mean_over_repeats(response), dtype=np.float32)
        self._trials: Tensor | None = None
        if trials == "all":
            each = response.transpose("repeat", "frame", "cell").values
            self._trials = _placed(torch.from_numpy(_compact(each)), device)
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
        self._bits = _packed(split["stimulus"]) if packed else None
        self._frames = self._bits.unpack if self._bits else self._reader(split["stimulus"])
        self._covariate: Tensor | None = None
        if "covariates" in inputs:
            self._covariate = _covariates(split).to(device)

    def __len__(self) -> int:
        return len(self.target)

    def runs(self, length: int) -> list[Run]:
        """Runs of at most `length` frames, each with at least one full history.

        They depend only on segments and lags, so that the batches of a cell do not depend on the
        missing responses of other cells.
        """
        starts = range(self.lags - 1, len(self), length)
        runs = [(start, min(start + length, len(self))) for start in starts]
        return [run for run in runs if self.full[slice(*run)].any()]

    def pieces(self, length: int) -> list[list[Run]]:
        """The frames with a full history of each segment, in runs of at most `length` frames."""
        found = []
        for segment in self.segments:
            starts = range(segment.start + self.lags - 1, segment.stop, length)
            found.append([(start, min(start + length, segment.stop)) for start in starts])
        return [pieces for pieces in found if pieces]

    def drawable(self) -> NDArray[np.int64]:
        """The frames in which the response of at least one cell is known."""
        return np.flatnonzero(self.known.any(1).cpu().numpy())

    def batch(self, run: Run, begins: bool = True, seed: int | None = None) -> Batch:
        """The batch of a run of frames, with the history before it.

        Args:
            run: the frames.
            begins: see `Batch`.
            seed: of the trials that are drawn with trials "all"; None for the mean.
        """
        start, end = run
        history = slice(start - self.lags + 1, end)
        target = self._targets(slice(start, end), seed)
        return Batch(self._inputs(history), target, self.known[start:end], begins=begins)

    def windows(self, frames: NDArray[np.int64], seed: int | None = None) -> Batch:
        """The batch of single frames, each with its own history, which must be full.

        Args:
            frames: their indices.
            seed: as for `batch`.
        """
        at = torch.from_numpy(frames).to(self.device)
        history = at[:, None] + torch.arange(1 - self.lags, 1, device=self.device)
        inputs = self._inputs(history.flatten())
        return Batch(inputs, self._targets(at, seed), self.known[at], shuffled=True)

    def _targets(self, at: slice | Tensor, seed: int | None) -> Tensor:
        """The targets of some frames: means, or trials that are drawn."""
        mean = self.target[at]
        if self._trials is None or seed is None:
            return mean
        generator = torch.Generator().manual_seed(seed % 2**63)
        drawn = torch.randint(len(self._trials), (len(mean),), generator=generator)
        frames = torch.arange(at.start, at.stop) if isinstance(at, slice) else at
        place = self._trials.device
        target = self._trials[drawn.to(place), frames.to(place)].to(mean)
        return torch.where(target.isfinite(), target, mean)  # the mean of a trial without response

    def _inputs(self, frames: slice | Tensor) -> tuple[Tensor, ...]:
        inputs: tuple[Tensor, ...]
        if self._bits is not None:
            inputs = (self._bits.take(frames).to(self.device), self._bits.values.to(self.device))
        else:
            inputs = (self._frames(frames).to(self.device, torch.float32),)
        return inputs if self._covariate is None else (*inputs, self._covariate[frames])

    def _reader(self, stimulus: xr.DataArray) -> Callable[[slice | Tensor], Tensor]:
        """A function that returns frames of a stimulus."""
        # xarray has no public attribute for this.
        if stimulus.variable._in_memory or stimulus.nbytes <= IN_MEMORY:
            held = _placed(torch.from_numpy(_compact(stimulus.values)), self.device)
            return lambda frames: held[_on(held, frames)]
        if stimulus.size / 8 <= IN_MEMORY:
            packed = _packed(stimulus)
            if packed is not None:
                return packed.unpack
        self.from_file = True
        return _FileReader(stimulus)


def _placed(held: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to a device, if it needs at most half of the free memory there."""
    if device.type == "cuda" and held.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return held
    return held.to(device)


def _on(held: Tensor, frames: slice | Tensor) -> slice | Tensor:
    return frames.to(held.device) if isinstance(frames, Tensor) else frames


class _FileReader:
    """Reads frames of a stimulus that stays in its file.

    A compressed file is read in whole chunks. The last chunks are cached, so that a chunk is not
    decompressed again for the next batch or for other frames of the same batch.
    """

    def __init__(self, stimulus: xr.DataArray):
        self.variable = stimulus.variable  # without coordinates, which would also be read
        encoding, frame_bytes = stimulus.encoding, stimulus.nbytes // len(stimulus)
        self.length = 0
        if any(encoding.get(name) for name in COMPRESSIONS):
            self.length = encoding.get("preferred_chunks", {}).get("frame", 0)
        held = CHUNKS_HELD // max(1, self.length * frame_bytes)
        if held < 2:
            self.length = 0
        self._chunk = lru_cache(held)(self._read_chunk)

    def __call__(self, frames: slice | Tensor) -> Tensor:
        """Reads a run of frames, or concatenated windows, each of which is a run."""
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
        # The first and last chunks are cropped before the concatenation, to copy once.
        parts[-1] = parts[-1][: end - chunks[-1] * self.length]
        parts[0] = parts[0][start - first :]
        return np.concatenate(parts)

    def _read_chunk(self, index: int) -> NDArray[Any]:
        values: NDArray[Any] = self.variable[index * self.length : (index + 1) * self.length].values
        return values


@dataclass(frozen=True)
class _PackedFrames:
    """The frames of a two-valued stimulus, stored in memory as bits (frame, byte)."""

    held: NDArray[np.uint8]
    values: Tensor  # (2,), of bit 0 and of bit 1
    shape: tuple[int, ...]  # of a frame

    def take(self, frames: slice | Tensor) -> Tensor:
        chosen = frames if isinstance(frames, slice) else frames.cpu().numpy()
        return torch.from_numpy(self.held[chosen])

    def unpack(self, frames: slice | Tensor) -> Tensor:
        pixels, (low, high) = int(np.prod(self.shape)), self.values.numpy()
        packed = self.take(frames).numpy()
        bits = np.unpackbits(packed, axis=1, count=pixels, bitorder="little")
        return torch.from_numpy(np.where(bits.reshape(-1, *self.shape), high, low))


def _packed(stimulus: xr.DataArray) -> _PackedFrames | None:
    """The frames of a stimulus as bits, or None if it has more than two values."""
    packed = []
    values: tuple[Any, Any] | None = None
    rows = max(1, PIECE // max(1, stimulus.nbytes // len(stimulus)))
    for part in blocks(stimulus):
        block = stimulus[part].values
        for start in range(0, len(block), rows):
            high = None if values is None else values[1]
            found = pack_two_values(block[start : start + rows], high)
            # It is also kept as it is if the two values do not both occur in the first piece.
            if found is None or (values is not None and found[1] not in values):
                return None
            bits, *both = found
            values = (both[0] if values is None else min(both[0], values[0]), both[1])
            packed.append(bits)
    assert values is not None  # a split has frames
    held = torch.tensor([float(value) for value in values])
    return _PackedFrames(np.concatenate(packed), held, stimulus.shape[1:])


def _compact(stimulus: NDArray[Any]) -> NDArray[Any]:
    """A stimulus in its own dtype if that is small and supported by torch, otherwise float32."""
    stimulus = np.ascontiguousarray(stimulus)
    if stimulus.dtype in (np.bool_, np.int8, np.uint8, np.int16):
        return stimulus
    return stimulus.astype(np.float32, copy=False)


def _covariates(split: xr.Dataset) -> Tensor:
    """The covariates (frame, covariate), float32."""
    if "covariates" not in split:
        raise RecordingError(
            "the model requires covariates and the recording has none; add 'covariates' (frame, "
            "covariate) to every split"
        )
    return torch.from_numpy(np.asarray(split["covariates"], dtype=np.float32))
