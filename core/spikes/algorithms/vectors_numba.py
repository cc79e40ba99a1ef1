"""Lines of 8 words as one value in Numba code.

LLVM keeps such a value in vector registers. It vectorises plain loops over words only if the arrays
are known not to overlap, which cannot be expressed in Numba.
"""

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.extending import models, register_model
from numba.np.arrayobj import make_array

intrinsic: Any = extending.intrinsic  # Numba passes the first argument

WORDS = 8
"""Number of 64-bit words in a line, which has the size of a cache line."""
_VECTOR = ir.VectorType(ir.IntType(64), WORDS)


class _Line(types.Type):
    """The type of a line."""


_line = _Line("Line")


@register_model(_Line)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, _VECTOR)


def _pointer(context: Any, builder: Any, kind: Any, words: Any, at: Any) -> Any:
    data = make_array(kind)(context, builder, words).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


@intrinsic
def load(typing: Any, words: Any, at: Any) -> Any:
    """The line words[at : at + 8]; bounds are not checked."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=8)

    return _line(words, types.intp), build


@intrinsic
def store(typing: Any, words: Any, at: Any, line: Any) -> Any:
    """words[at : at + 8] = line; bounds are not checked."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, at, line = args
        builder.store(line, _pointer(context, builder, signature.args[0], words, at), align=8)
        return context.get_dummy_value()

    return types.void(words, types.intp, line), build


@intrinsic
def add(typing: Any, low: Any, a: Any, b: Any) -> Any:
    """A full adder: the lines high and low with low + a + b = 2 · high + low for each bit."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, a, b = args
        either = builder.xor(low, a)
        high = builder.or_(builder.and_(low, a), builder.and_(either, b))
        pair = [high, builder.xor(either, b)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(_line, 2)(low, a, b), build
