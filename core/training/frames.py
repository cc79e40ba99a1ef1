"""A split of a recording, held for training: batches of frames with what is to be predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from retinakit.contracts.errors import RecordingError
from retinakit.contracts.recording import full_history, mean_response, segments

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
    """A split on the training device.

    Args:
        split: of a recording.
        target: "response" (its mean over repeats) or "rate".
        lags: frames of history of a prediction, its own frame included.
        device: where batches are needed.
        inputs: "stimulus", and "covariates" for a module that takes covariates.

    Attributes:
        known: (frame, cell), false where unknown or without a full history.

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
        if target == "rate" and "rate" not in split:
            raise RecordingError(
                "target is 'rate' and the recording has no 'rate'; use target: response"
            )
        response = split["rate"] if target == "rate" else mean_response(split)
        values = np.asarray(response, dtype=np.float32)
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
        self._stimulus = torch.from_numpy(_compact(split["stimulus"].values)).to(device)
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
        inputs = (self._stimulus[frames].float(),)
        return inputs if self._covariate is None else (*inputs, self._covariate[frames])


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
