"""The dataset contract: something that makes a recording."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr

from retinakit.contracts.plugin import Plugin


class Dataset(Plugin, ABC):
    """Makes a recording (see `retinakit.contracts`), from files, a simulation, or another one.

    Attributes:
        volatile: the stimulus is cheaper to make again than to store (a crop of a cached movie, a
            filtered copy of another dataset). The store then keeps the recording without it, and
            makes it again where it is needed.
    """

    volatile: ClassVar[bool] = False

    @abstractmethod
    def load(self, *args: Any, **kwargs: Any) -> xr.DataTree:
        """The recording.

        A dataset made from another one declares `load(self, data)`, and gets the recording of the
        step that its `data:` names; one that stands alone declares `load(self)`.

        Raises:
            UserError: if the source cannot be read; names the file and the reason.
        """

    def files(self) -> list[Path]:
        """The input files. Their contents are part of what identifies the result."""
        return []
