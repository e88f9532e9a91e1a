"""Rounding to a grid and reading back, compiled by numba: few passes, no temporary tensors.

The operations of `rad.sketches.grid.fit`, `Rounding.round` and `Rounding.read` in
their order and type, so that grids, codes and estimates are the same to the bit. Blocks
are rows of x (m, n); a block's grid is `half_low` and `half` (m,) as in
`rad.sketches.grid`, `scale` is 0.5 or 2 in x's type, `keys` and `first` are those of
`rad.sketches.compiled`. Inner loops have no branches, so that the compiler can use vector
instructions. Cached on disk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.sketches.compiled import row_key, word

_TOP = np.uint64(48)


@njit(nogil=True, cache=True, error_model="numpy")
def ordered_extremes_but_zeros(x: np.ndarray, out: np.ndarray) -> None:
    """Least and greatest number but zeros of each block, as integers in their order: (m, 2).

    x (m, n) holds the bits of floating-point numbers as signed integers. A positive
    number's bits are in order already; a negative one's other bits are flipped. NaN
    lies beyond the infinities. A block of zeros alone gives the integer type's
    greatest and least value.
    """
    largest, smallest = np.iinfo(x.dtype).max, np.iinfo(x.dtype).min
    sign = x.dtype.type(8 * x.itemsize - 1)
    for block in range(x.shape[0]):
        low, high = x.dtype.type(largest), x.dtype.type(smallest)
        for i in range(x.shape[1]):
            bits = x[block, i]
            ordered = bits ^ ((bits >> sign) & x.dtype.type(largest))
            zero = (bits & x.dtype.type(largest)) == 0
            low = min(low, x.dtype.type(largest) if zero else ordered)
            high = max(high, x.dtype.type(smallest) if zero else ordered)
        out[block, 0], out[block, 1] = low, high


@njit(nogil=True, cache=True, error_model="numpy")
def fit_grids(lowest: np.ndarray, highest: np.ndarray, steps: float, scales: np.ndarray) -> None:
    """`grid.fit` of each block's extremes (m,), into scales (m, 2); `steps` in their type."""
    scale = scales.dtype.type(0.5)
    for block in range(len(lowest)):
        reach = highest[block] * scale - lowest[block] * scale
        half = reach / steps
        if reach / half > steps:
            half = np.nextafter(half, scales.dtype.type(np.inf))
        scales[block, 0], scales[block, 1] = lowest[block], half


@njit(inline="always")
def _fill(words: np.ndarray, key: np.uint64, row: int, n: int, low_bits: np.int32) -> np.int32:
    """A row's words for n draws, into words (at least n / 4,); the part that they share."""
    count = (n + 3) // 4
    for i in range(count):
        words[i] = word(key, row, i)
    return np.int32(np.int64(word(key, row, count) >> _TOP) & ((1 << low_bits) - 1))


@njit(nogil=True, cache=True, error_model="numpy")
def round_blocks(
    x: np.ndarray,
    half_low: np.ndarray,
    half: np.ndarray,
    scale: float,
    keys: np.ndarray,
    first: int,
    fraction_bits: int,
    steps: int,
    zero_code: bool,
    codes: np.ndarray,
) -> None:
    """The codes of x, into codes (m, n) uint8."""
    n = x.shape[1]
    low_bits, top = np.int32(fraction_bits - 16), np.int32(steps)
    bits = np.int32(fraction_bits)
    one = half.dtype.type(1 << fraction_bits)
    words = np.empty((n + 3) // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(x.shape[0]):
        low = half_low[block]
        step = half[block] if half[block] != 0 else half.dtype.type(1)
        shared = _fill(words, row_key(keys, block), first + block, n, low_bits)
        shared = np.int32(shared + (1 << (fraction_bits - 1)))
        for i in range(n):
            value = x[block, i]
            fixed = np.int32((value * scale - low) / step * one)
            draw = (np.int32(lanes[i]) << low_bits) + shared
            code = min(np.int32((fixed + draw) >> bits) & np.int32(255), top)
            if zero_code:
                code = code + np.int32(1) if value != 0 else np.int32(0)
            codes[block, i] = np.uint8(code)


@njit(nogil=True, cache=True, error_model="numpy")
def read_blocks(
    codes: np.ndarray,
    half_low: np.ndarray,
    half: np.ndarray,
    scale: float,
    keys: np.ndarray,
    first: int,
    fraction_bits: int,
    dithered: bool,
    zero_code: bool,
    out: np.ndarray,
) -> None:
    """What the codes stand for, into out (m, n)."""
    n = codes.shape[1]
    low_bits, bits = np.int32(fraction_bits - 16), np.int32(fraction_bits)
    middle = np.int32(1 << (fraction_bits - 1))
    unit = out.dtype.type(1 / (1 << fraction_bits))
    lowest = np.int32(1 if zero_code else 0)
    words = np.empty((n + 3) // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(codes.shape[0]):
        low, step = half_low[block], half[block]
        if dithered:
            shared = _fill(words, row_key(keys, block), first + block, n, low_bits)
            shared = np.int32(shared + middle)
            for i in range(n):
                level = np.int32(codes[block, i]) - lowest
                draw = (np.int32(lanes[i]) << low_bits) + shared
                at = out.dtype.type((level << bits) - draw + middle) * unit
                out[block, i] = (at * step + low) * scale
        else:
            for i in range(n):
                at = out.dtype.type(np.int32(codes[block, i]) - lowest)
                out[block, i] = (at * step + low) * scale
        if zero_code:
            for i in range(n):
                if codes[block, i] == 0:
                    out[block, i] = 0
