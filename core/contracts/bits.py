"""Binary stimuli as bits: an eighth of the memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError


@dataclass(frozen=True)
class Bits:
    """A stimulus of +1 (bit 1) and -1 (bit 0).

    Attributes:
        packed: (frame, byte) uint8, 8 pixels a byte, the lowest bit first; the pixels of a frame
            are those of its flattened (y, x), and its last byte is filled up.
        pixels: how many pixels a frame has.
    """

    packed: NDArray[np.uint8]
    pixels: int

    @classmethod
    def pack(cls, stimulus: NDArray[Any]) -> "Bits":
        """The bits of a stimulus (frame, ...).

        Raises:
            UserError: if a value is neither +1 nor -1.
        """
        flat = stimulus.reshape(len(stimulus), -1)
        if not np.all((flat == 1) | (flat == -1)):
            raise UserError("bits hold a stimulus of +1 and -1, and this one has other values")
        return cls(np.packbits(flat > 0, axis=1, bitorder="little"), flat.shape[1])

    def unpack(self) -> NDArray[np.int8]:
        """The stimulus, (frame, pixel), of +1 and -1."""
        bits = np.unpackbits(self.packed, axis=1, count=self.pixels, bitorder="little")
        return 2 * bits.view(np.int8) - 1
