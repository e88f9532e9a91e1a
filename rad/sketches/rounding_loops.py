"""Rounding of blocks to their grids, and reading back, compiled by numba: no temporary tensors.

The operations of `rad.sketches.grid.fit`, and of `round` and `read` of `Rounding`, in their order
and type, so that grids, codes and estimates are the same to the bit. `keys` and `first` are those
of `rad.draws.loops`. Inner loops have no branches, and integers of 32 bits stay so (numpy's
functions keep the type, where operators widen), so that the compiler can use vector instructions.
Cached on disk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.draws.loops import mix, row_key, word
from rad.draws.reference import PART_MASK, ROW, SLOT

CHUNK = 2048
"""Numbers rounded or read at a time, a multiple of 8: draws and codes stay in a core's cache."""

_TOP, _PART = np.uint64(48), np.uint64(PART_MASK)
_ROW, _SLOT = np.uint64(ROW % 2**64), np.uint64(SLOT % 2**64)


@njit(inline="always")
def fit_block(
    x: np.ndarray, x_bits: np.ndarray, steps: float, skip_zeros: bool, ends: np.ndarray
) -> float:
    """`grid.fit` of a block x (n,), n > 0: `half`, and `low` in the first number of `ends` (2,).

    `steps` is of x's type. `x_bits` and `ends` hold the bits of numbers as signed integers: of
    positive numbers in the numbers' order, of negative ones in the opposite one, NaN beyond the
    infinities. So the extremes are found among the least, the most, and the most as
    unsigned integers, which is the lowest of the negative numbers.
    """
    least = x_bits.dtype.type(np.iinfo(x_bits.dtype).min)
    others = x_bits.dtype.type(np.iinfo(x_bits.dtype).max)
    low, high, lowest = others, least, least
    if skip_zeros:
        for i in range(len(x_bits)):
            bits = x_bits[i]
            zero = np.bitwise_and(bits, others) == 0
            low = min(low, others if zero else bits)
            high = max(high, least if zero else bits)
            lowest = max(lowest, least if zero else np.bitwise_xor(bits, least))
    else:
        for i in range(len(x_bits)):
            bits = x_bits[i]
            low = min(low, bits)
            high = max(high, bits)
            lowest = max(lowest, np.bitwise_xor(bits, least))
    if low > high:  # zeros alone
        ends[0], ends[1] = 0, 0
    else:
        ends[0] = np.bitwise_xor(lowest, least) if low < 0 else low
        ends[1] = high if high >= 0 else low
    numbers = ends.view(x.dtype)
    if np.isnan(numbers[0]) or np.isnan(numbers[1]):
        numbers[:] = np.nan
    scale = x.dtype.type(0.5)
    reach = numbers[1] * scale - numbers[0] * scale
    half = reach / steps
    if reach / half > steps:
        half = np.nextafter(half, x.dtype.type(np.inf))
    return half


@njit(inline="always")
def draw_words(key: np.uint64, row: int, first: int, count: int, words: np.ndarray) -> None:
    """Words `first` to `first + count` of a row, into `words`."""
    counter = key + _ROW * np.uint64(row) + _SLOT * np.uint64(first)
    for i in range(count):
        words[i] = mix(counter)
        counter += _SLOT


@njit(inline="always")
def shared_draw(key: np.uint64, row: int, n: int, fraction_bits: int) -> np.int32:
    """What the draws of a row of n share, `grid.uniform`'s flipped top bit included."""
    low = np.int64(word(key, row, (n + 3) // 4) >> _TOP) & ((1 << (fraction_bits - 16)) - 1)
    return np.int32(low + (1 << (fraction_bits - 1)))


@njit(inline="always")
def shared_part(key: np.uint64, row: int, n: int) -> float:
    """`grid.part` of a row of n draws."""
    return np.int64(word(key, row, (n + 3) // 4) & _PART) * (1 / (PART_MASK + 1))


@njit(inline="always")
def round_chunk(
    x: np.ndarray,
    low: float,
    half: float,
    lanes: np.ndarray,
    shared: np.int32,
    part: float,
    near: float,
    fraction_bits: int,
    steps: int,
    zero_code: bool,
    codes: np.ndarray,
) -> None:
    """The codes of numbers of a block, `lanes` (int16) being the first of their draws."""
    low_bits, bits = np.int32(fraction_bits - 16), np.int32(fraction_bits)
    top, nothing = np.uint8(steps), x.dtype.type(0)
    one, scale = x.dtype.type(1 << fraction_bits), x.dtype.type(0.5)
    half_low, limit, fraction = low * scale, x.dtype.type(near), x.dtype.type(part)
    step = half if half != 0 else x.dtype.type(1)
    for i in range(len(x)):
        at = (x[i] * scale - half_low) / step * one
        at += fraction if at < limit else nothing
        draw = np.add(np.left_shift(np.int32(lanes[i]), low_bits), shared)
        code = np.uint8(np.right_shift(np.add(np.int32(at), draw), bits))
        codes[i] = min(code, top)
    if zero_code:
        for i in range(len(x)):
            codes[i] = codes[i] + np.uint8(1) if x[i] != 0 else np.uint8(0)


@njit(inline="always")
def read_chunk(
    codes: np.ndarray,
    low: float,
    half: float,
    lanes: np.ndarray,
    shared: np.int32,
    fraction_bits: int,
    dithered: bool,
    zero_code: bool,
    out: np.ndarray,
) -> None:
    """What codes of a block stand for; draws are needed where `dithered`."""
    low_bits, bits = np.int32(fraction_bits - 16), np.int32(fraction_bits)
    middle = np.int32(1 << (fraction_bits - 1))
    unit = out.dtype.type(1 / (1 << fraction_bits))
    lowest, nothing = np.int32(1 if zero_code else 0), out.dtype.type(0)
    two, half_low = out.dtype.type(2), low * out.dtype.type(0.5)
    below = out.dtype.type(0.5 if out.itemsize == 8 else 0)
    if dithered:
        for i in range(len(codes)):
            level = np.left_shift(np.subtract(np.int32(codes[i]), lowest), bits)
            draw = np.add(np.left_shift(np.int32(lanes[i]), low_bits), shared)
            at = (out.dtype.type(np.add(np.subtract(level, draw), middle)) - below) * unit
            out[i] = (at * half + half_low) * two
    else:
        for i in range(len(codes)):
            at = out.dtype.type(np.subtract(np.int32(codes[i]), lowest))
            out[i] = (at * half + half_low) * two
    if zero_code:
        for i in range(len(codes)):
            out[i] = nothing if codes[i] == 0 else out[i]


@njit(nogil=True, cache=True, error_model="numpy")
def fit_blocks(
    x: np.ndarray, x_bits: np.ndarray, steps: float, skip_zeros: bool, scales: np.ndarray
) -> None:
    """The grids of blocks x (m, n), n > 0, into scales (m, 2)."""
    ends = np.empty(2, x_bits.dtype)
    numbers = ends.view(x.dtype)
    for block in range(x.shape[0]):
        half = fit_block(x[block], x_bits[block], steps, skip_zeros, ends)
        scales[block, 0], scales[block, 1] = numbers[0], half


@njit(nogil=True, cache=True, error_model="numpy")
def round_blocks(
    x: np.ndarray,
    scales: np.ndarray,
    keys: np.ndarray,
    first: int,
    fraction_bits: int,
    steps: int,
    zero_code: bool,
    near: float,
    codes: np.ndarray,
) -> None:
    """The codes of blocks x (m, n) on grids `scales` (m, 2), into codes (m, n) uint8."""
    n = x.shape[1]
    words = np.empty(CHUNK // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(x.shape[0]):
        key, row = row_key(keys, block), first + block
        shared, part = shared_draw(key, row, n, fraction_bits), shared_part(key, row, n)
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            draw_words(key, row, start // 4, (stop - start + 3) // 4, words)
            numbers, into = x[block, start:stop], codes[block, start:stop]
            low, half = scales[block, 0], scales[block, 1]
            round_chunk(
                numbers, low, half, lanes, shared, part, near, fraction_bits, steps, zero_code, into
            )


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
    """What the codes of blocks (m, n) stand for on grids `scales` (m, 2), into out (m, n)."""
    n = codes.shape[1]
    words = np.empty(CHUNK // 4, np.uint64)
    lanes = words.view(np.int16)
    for block in range(codes.shape[0]):
        key, row = row_key(keys, block), first + block
        shared = shared_draw(key, row, n, fraction_bits)
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            if dithered:
                draw_words(key, row, start // 4, (stop - start + 3) // 4, words)
            kept, into = codes[block, start:stop], out[block, start:stop]
            low, half = scales[block, 0], scales[block, 1]
            read_chunk(kept, low, half, lanes, shared, fraction_bits, dithered, zero_code, into)
