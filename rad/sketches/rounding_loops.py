"""Rounding to a grid, packing and reading back, compiled by numba: no temporary tensors.

The operations of `rad.sketches.grid.fit`, of `round` and `read` of `Rounding`, and of
`rad.packing.codes`, in their order and type, so that grids, codes and estimates are the
same to the bit. Blocks are rows of x (m, n) with grids `scales` (m, 2); `keys` and `first`
are those of `rad.draws.loops`. Inner loops have no branches, so that the compiler
can use vector instructions. Cached on disk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.draws.loops import row_key, word
from rad.draws.reference import PART_MASK

_TOP, _PART = np.uint64(48), np.uint64(PART_MASK)


@njit(nogil=True, cache=True, error_model="numpy")
def fit_blocks(
    x: np.ndarray, x_bits: np.ndarray, steps: float, skip_zeros: bool, scales: np.ndarray
) -> None:
    """`grid.fit` of x (m, n), n > 0, into scales (m, 2). `steps` is of x's type.

    `x_bits` are the bits of x as signed integers, which the extremes are taken of, in the
    numbers' order: a positive number's bits are in order already, a negative one's other
    bits are flipped, and NaN lies beyond the infinities.
    """
    least, most = np.iinfo(x_bits.dtype).min, np.iinfo(x_bits.dtype).max
    sign, others = x_bits.dtype.type(8 * x_bits.itemsize - 1), x_bits.dtype.type(most)
    ends = np.empty(2, x_bits.dtype)
    numbers = ends.view(x.dtype)
    scale = x.dtype.type(0.5)
    for block in range(x.shape[0]):
        low, high = others, x_bits.dtype.type(least)
        for i in range(x.shape[1]):
            bits = x_bits[block, i]
            ordered = bits ^ ((bits >> sign) & others)
            skip = skip_zeros and (bits & others) == 0
            low = min(low, others if skip else ordered)
            high = max(high, x_bits.dtype.type(least) if skip else ordered)
        if low > high:  # zeros alone
            low, high = x_bits.dtype.type(0), x_bits.dtype.type(0)
        ends[0], ends[1] = low ^ ((low >> sign) & others), high ^ ((high >> sign) & others)
        if np.isnan(numbers[0]) or np.isnan(numbers[1]):
            numbers[:] = np.nan
        reach = numbers[1] * scale - numbers[0] * scale
        half = reach / steps
        if reach / half > steps:
            half = np.nextafter(half, x.dtype.type(np.inf))
        scales[block, 0], scales[block, 1] = numbers[0], half


@njit(inline="always")
def _fill(words: np.ndarray, key: np.uint64, row: int, n: int, low_bits: np.int32) -> np.int32:
    """A row's words for n draws, into words (at least n / 4,); the part that they share."""
    count = (n + 3) // 4
    for i in range(count):
        words[i] = word(key, row, i)
    return np.int32(np.int64(word(key, row, count) >> _TOP) & ((1 << low_bits) - 1))


@njit(inline="always")
def _part(key: np.uint64, row: int, n: int) -> float:
    """`grid.part` of a row of n draws."""
    return np.int64(word(key, row, (n + 3) // 4) & _PART) * (1 / (PART_MASK + 1))


@njit(nogil=True, cache=True, error_model="numpy")
def round_blocks(
    x: np.ndarray,
    scales: np.ndarray,
    keys: np.ndarray,
    first: int,
    fraction_bits: int,
    steps: int,
    zero_code: bool,
    near: float | None,
    codes: np.ndarray,
) -> None:
    """The codes of x, into codes (m, n) uint8. `near` is of x's type."""
    n = x.shape[1]
    low_bits, top = np.int32(fraction_bits - 16), np.int32(steps)
    bits = np.int32(fraction_bits)
    nothing = x.dtype.type(0)
    one, half = x.dtype.type(1 << fraction_bits), x.dtype.type(0.5)
    words = np.empty((n + 3) // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(x.shape[0]):
        half_low = scales[block, 0] * half
        half_step = scales[block, 1] if scales[block, 1] != 0 else x.dtype.type(1)
        shared = _fill(words, row_key(keys, block), first + block, n, low_bits)
        shared = np.int32(shared + (1 << (fraction_bits - 1)))
        part = x.dtype.type(_part(row_key(keys, block), first + block, n))
        for i in range(n):
            value = x[block, i]
            at = (value * half - half_low) / half_step * one
            if near is not None:  # known when this is compiled
                at += part if at < near else nothing
            fixed = np.int32(at)
            draw = (np.int32(lanes[i]) << low_bits) + shared
            code = min(np.int32((fixed + draw) >> bits) & np.int32(255), top)
            if zero_code:
                code = code + np.int32(1) if value != 0 else np.int32(0)
            codes[block, i] = np.uint8(code)


@njit(nogil=True, cache=True, error_model="numpy")
def read_blocks(
    codes: np.ndarray,
    scales: np.ndarray,
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
    half, two = out.dtype.type(0.5), out.dtype.type(2)
    below = half if out.itemsize == 8 else out.dtype.type(0)
    words = np.empty((n + 3) // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(codes.shape[0]):
        half_low, half_step = scales[block, 0] * half, scales[block, 1]
        if dithered:
            shared = _fill(words, row_key(keys, block), first + block, n, low_bits)
            shared = np.int32(shared + middle)
            for i in range(n):
                level = np.int32(codes[block, i]) - lowest
                draw = (np.int32(lanes[i]) << low_bits) + shared
                at = (out.dtype.type((level << bits) - draw + middle) - below) * unit
                out[block, i] = (at * half_step + half_low) * two
        else:
            for i in range(n):
                at = out.dtype.type(np.int32(codes[block, i]) - lowest)
                out[block, i] = (at * half_step + half_low) * two
        if zero_code:
            for i in range(n):
                if codes[block, i] == 0:
                    out[block, i] = 0
