"""What `encode` and `decode` of `Rounding` do in one pass over memory, compiled by numba.

Sequences of numbers, cut into blocks of `size`, the last of which may be shorter. Codes pass
through a short buffer on their way to the planes or from them. Tensors come as addresses
(`rad.backends.addresses`); `zero` (and `lowest`, its integer) tell their type. The planes of all
widths are read and written as whole groups of eight codes (`rad.packing.codes`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.backends.addresses import numbers_at
from rad.draws.loops import row_key
from rad.sketches.rounding_loops import (
    CHUNK,
    draw_words,
    fit_block,
    read_chunk,
    round_chunk,
    shared_draw,
    shared_part,
)

_U8, _U16, _U32, _U64 = np.uint8(0), np.uint16(0), np.uint32(0), np.uint64(0)
_16 = np.uint64(16)


@njit(inline="always")
def _write_groups(
    groups: np.ndarray, count: int, bits: int, masks: np.ndarray, low: int, high: int, first: int
) -> None:
    """Packs `count` groups of codes into the planes at those addresses, from group `first` on."""
    shift = np.uint64(8 - bits)
    if bits < 8:
        for i in range(count):
            word = groups[i]
            word = ((word >> shift) | word) & masks[0]
            word = ((word >> (shift * np.uint64(2))) | word) & masks[1]
            groups[i] = ((word >> (shift * np.uint64(4))) | word) & masks[2]
    if bits == 1:
        octets = numbers_at(low + first, count, _U8)
        for i in range(count):
            octets[i] = np.uint8(groups[i])
    elif bits == 2 or bits == 3:
        pairs = numbers_at(low + 2 * first, count, _U16)
        for i in range(count):
            pairs[i] = np.uint16(groups[i])
        if bits == 3:
            thirds = numbers_at(high + first, count, _U8)
            for i in range(count):
                thirds[i] = np.uint8(groups[i] >> _16)
    elif bits == 4:
        fours = numbers_at(low + 4 * first, count, _U32)
        for i in range(count):
            fours[i] = np.uint32(groups[i])
    else:
        eights = numbers_at(low + 8 * first, count, _U64)
        eights[:] = groups[:count]


@njit(inline="always")
def _read_groups(
    low: int, high: int, first: int, count: int, bits: int, masks: np.ndarray, groups: np.ndarray
) -> None:
    """The inverse of `_write_groups`."""
    if bits == 1:
        octets = numbers_at(low + first, count, _U8)
        for i in range(count):
            groups[i] = np.uint64(octets[i])
    elif bits == 2:
        pairs = numbers_at(low + 2 * first, count, _U16)
        for i in range(count):
            groups[i] = np.uint64(pairs[i])
    elif bits == 3:
        pairs, thirds = (
            numbers_at(low + 2 * first, count, _U16),
            numbers_at(high + first, count, _U8),
        )
        for i in range(count):
            groups[i] = np.uint64(pairs[i]) | (np.uint64(thirds[i]) << _16)
    elif bits == 4:
        fours = numbers_at(low + 4 * first, count, _U32)
        for i in range(count):
            groups[i] = np.uint64(fours[i])
    else:
        eights = numbers_at(low + 8 * first, count, _U64)
        groups[:count] = eights
    shift = np.uint64(8 - bits)
    if bits < 8:
        for i in range(count):
            word = groups[i]
            word = ((word << (shift * np.uint64(4))) | word) & masks[3]
            word = ((word << (shift * np.uint64(2))) | word) & masks[4]
            groups[i] = ((word << shift) | word) & masks[5]


@njit(nogil=True, cache=True, error_model="numpy")
def compress(
    numbers: int,
    sequences: int,
    count: int,
    size: int,
    keys: int,
    key_count: int,
    first: int,
    bits: int,
    steps: int,
    zero_code: bool,
    near: float,
    masks: np.ndarray,
    low: int,
    high: int,
    scales: int,
    given: bool,
    zero: np.generic,
    lowest: np.generic,
) -> None:
    """Planes and grids of all sequences of `count` numbers each, the blocks being `first` on.

    Where grids are `given` they are read from `scales`, else written there.
    """
    blocks, groups_each, fraction_bits = (count + size - 1) // size, (count + 7) // 8, 31 - bits
    key_of = numbers_at(keys, key_count, _U64)
    grids = numbers_at(scales, 2 * sequences * blocks, zero)
    words, groups = np.empty(CHUNK // 4, np.uint64), np.empty(CHUNK // 4 + 1, np.uint64)
    lanes, codes = words.view(np.int16), groups.view(np.uint8)
    extremes, level = np.empty(2, grids.dtype), grids.dtype.type(steps)
    ends = numbers_at(extremes.ctypes.data, 2, lowest)
    for sequence in range(sequences):
        place = numbers + sequence * count * grids.itemsize
        x, x_bits = numbers_at(place, count, zero), numbers_at(place, count, lowest)
        waiting, done = 0, sequence * groups_each
        for block in range(blocks):
            begin, end = block * size, min(block * size + size, count)
            number = sequence * blocks + block
            if not given:
                half = fit_block(x[begin:end], x_bits[begin:end], level, zero_code, ends)
                grids[2 * number], grids[2 * number + 1] = extremes[0], half
            smallest, half = grids[2 * number], grids[2 * number + 1]
            key, row = row_key(key_of, number), first + number
            shared, part = shared_draw(key, row, size, fraction_bits), shared_part(key, row, size)
            for start in range(begin, end, CHUNK):
                stop = min(start + CHUNK, end)
                draw_words(key, row, (start - begin) // 4, (stop - start + 3) // 4, words)
                into = codes[waiting : waiting + stop - start]
                round_chunk(
                    x[start:stop], smallest, half, lanes, shared, part, near,
                    fraction_bits, steps, zero_code, into,
                )  # fmt: skip
                waiting += stop - start
                if waiting >= CHUNK:
                    whole = waiting // 8
                    tail = groups[whole]
                    _write_groups(groups, whole, bits, masks, low, high, done)
                    groups[0] = tail
                    done, waiting = done + whole, waiting - 8 * whole
        whole = (waiting + 7) // 8
        codes[waiting : 8 * whole] = 0
        _write_groups(groups, whole, bits, masks, low, high, done)


@njit(nogil=True, cache=True, error_model="numpy")
def decompress(
    low: int,
    high: int,
    scales: int,
    skipped: int,
    sequences: int,
    count: int,
    first_number: int,
    length: int,
    runs: int,
    stride: int,
    size: int,
    keys: int,
    key_count: int,
    first: int,
    bits: int,
    dithered: bool,
    zero_code: bool,
    masks: np.ndarray,
    out: int,
    zero: np.generic,
) -> None:
    """What numbers of each sequence of `count` are read as, into `out`, in order.

    They are `runs` of `length` numbers each, which begin `stride` apart, from `first_number` on.
    The grids of the first `skipped` blocks are left out of `scales`.
    """
    blocks, groups_each, fraction_bits = (count + size - 1) // size, (count + 7) // 8, 31 - bits
    key_of = numbers_at(keys, key_count, _U64)
    grids = numbers_at(scales, 2 * (sequences * blocks - skipped), zero)
    x_hat = numbers_at(out, sequences * runs * length, zero)
    words, groups = np.empty(CHUNK // 4 + 1, np.uint64), np.empty(CHUNK // 8 + 1, np.uint64)
    lanes, codes = words.view(np.int16), groups.view(np.uint8)
    for run in range(sequences * runs):
        sequence, begin = run // runs, first_number + run % runs * stride
        stop, place = begin + length, run * length - begin
        while begin < stop:
            block = begin // size
            end = min(begin + CHUNK, block * size + size, stop)
            number, at, skip = sequence * blocks + block, begin - block * size, begin % 8
            group = sequence * groups_each + begin // 8
            _read_groups(low, high, group, (skip + end - begin + 7) // 8, bits, masks, groups)
            grid, key, row = number - skipped, row_key(key_of, number), first + number
            shared = shared_draw(key, row, size, fraction_bits) if dithered else np.int32(0)
            if dithered:
                draw_words(key, row, at // 4, (at % 4 + end - begin + 3) // 4, words)
            read_chunk(
                codes[skip : skip + end - begin], grids[2 * grid], grids[2 * grid + 1],
                lanes[at % 4 :], shared, fraction_bits, dithered, zero_code,
                x_hat[place + begin : place + end],
            )  # fmt: skip
            begin = end
