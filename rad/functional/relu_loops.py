"""ReLU and its bits in one pass over memory, compiled by numba.

Numbers are taken as integers of their size. Those of a floating-point type are in the order of
their bits up to the sign, so that with `lowest` and `infinity`, the bits of -0 and of -inf as
signed integers, a number is -0 or below 0 where its bits are at most `infinity`; NaN is above.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.backends.addresses import numbers_at
from rad.packing.bit_loops import FLAGS, gather

_BYTE = np.uint8(0)


@njit(nogil=True, cache=True, error_model="numpy")
def relu(
    numbers: int, out: int, packed: int, count: int, lowest: np.generic, infinity: np.generic
) -> None:
    """max(x, 0) as torch has it, -0 and NaN left as they are, and which of it are not 0.

    `out` may be the numbers themselves: a loop over numbers that overlap what it writes does not
    become vector instructions, so that they then pass through a buffer.
    """
    x, y = numbers_at(numbers, count, lowest), numbers_at(out, count, lowest)
    octets = numbers_at(packed, (count + 7) // 8, _BYTE)
    flags, block = np.empty(FLAGS, np.uint8), np.empty(FLAGS, x.dtype)
    nothing = x.dtype.type(0)
    for start in range(0, count, FLAGS):
        source = x[start : start + FLAGS]
        target = block[: len(source)] if numbers == out else y[start : start + FLAGS]
        for i in range(len(source)):
            bits = source[i]
            below = bits <= infinity
            flags[i] = not below and bits != nothing
            target[i] = nothing if below and bits != lowest else bits
        if numbers == out:
            for i in range(len(source)):
                source[i] = target[i]
        gather(flags, len(source), octets, start // 8)
