"""Binary stimuli stored as bits, in an eighth of the memory of int8."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError


@dataclass(frozen=True)
class Bits:
    """A stimulus with the values +1 (bit 1) and -1 (bit 0).

    Attributes:
        packed: (frame, byte) uint8 with 8 pixels per byte, least significant bit first. The pixels
            of a frame are in the order of its flattened (y, x); the last byte is padded with 0.
        pixels: the number of pixels of a frame.

    Example:
        >>> bits = Bits.pack(np.array([[[1, -1], [-1, 1]]]))  # (frame, y, x)
        >>> bits.packed.shape, bits.unpack().tolist()
        ((1, 1), [[1, -1, -1, 1]])
    """

    packed: NDArray[np.uint8]
    pixels: int

    @classmethod
    def pack(cls, stimulus: NDArray[Any]) -> "Bits":
        """Packs a stimulus.

        Args:
            stimulus: (frame, ...), all values +1 or -1.

        Raises:
            UserError: if a value is neither +1 nor -1.
        """
        flat = stimulus.reshape(len(stimulus), -1)
        if not np.all((flat == 1) | (flat == -1)):
            raise UserError(
                "the stimulus has values other than +1 and -1 and cannot be stored as bits; give "
                "it as an array"
            )
        return cls(np.packbits(flat > 0, axis=1, bitorder="little"), flat.shape[1])

    def unpack(self) -> NDArray[np.int8]:
        """The stimulus (frame, pixel), +1 and -1, int8."""
        bits = np.unpackbits(self.packed, axis=1, count=self.pixels, bitorder="little")
        return 2 * bits.view(np.int8) - 1


def pack_two_values(
    stimulus: NDArray[Any], high: Any = None
) -> tuple[NDArray[np.uint8], Any, Any] | None:
    """Packs a stimulus of two values, whatever they are.

    Args:
        stimulus: (frame, ...), at least one frame.
        high: the value of bit 1; by default the maximum.

    Returns:
        The bits (frame, byte) as in `Bits.packed`, and the values of bit 0 and of bit 1; None if
        the stimulus has more than two values.

    Example:
        >>> pack_two_values(np.array([[0, 5, 5], [5, 0, 0]]))
        (array([[6],
               [1]], dtype=uint8), np.int64(0), np.int64(5))
    """
    low, high = stimulus.min(), stimulus.max() if high is None else high
    bits = stimulus == high
    if not (bits | (stimulus == low)).all():
        return None
    return np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="little"), low, high
