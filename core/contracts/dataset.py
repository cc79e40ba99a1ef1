"""The dataset contract: a dataset makes a recording."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import xarray as xr

from retinakit.contracts.plugin import Plugin


class Dataset(Plugin, ABC):
    """Base class of datasets, which make a recording from files, a simulation or another recording.

    See `retinakit.contracts.recording` for the recording.

    Attributes:
        volatile: whether the stimulus is cheaper to compute again than to store, such as a crop of
            a movie or a filtered copy of another dataset. The store then keeps the recording
            without the stimulus, and `load` is called again when the stimulus is needed.

    Example:
        >>> import numpy as np
        >>> from retinakit.contracts import SPLITS, make_recording, make_split
        >>> class Noise(Dataset):
        ...     def load(self):
        ...         random = np.random.default_rng(self.seed)
        ...         stimulus = random.standard_normal((50, 4, 4))
        ...         spikes = random.poisson(1, (50, 2))
        ...         split = make_split(stimulus, spikes, frame_interval=0.02)
        ...         return make_recording(dict.fromkeys(SPLITS, split))
        >>> Noise(seed=1).load()["train"]["response"].shape
        (50, 2)
    """

    volatile: ClassVar[bool] = False

    @abstractmethod
    def load(self, *args: Any, **kwargs: Any) -> xr.DataTree:
        """Makes the recording.

        A dataset that is derived from another one declares `load(self, data)` and gets the
        recording of the step that its `data:` names; with a default, as in `load(self, data=None)`,
        it can also be made without `data:`. Any other declares `load(self)`.

        Raises:
            UserError: if a file cannot be read; the message names the file and the reason.
        """
