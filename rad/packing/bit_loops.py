"""Booleans, eight a byte, in loops compiled by numba: the format of `rad.packing.bits`.

Numbers are taken as integers of their size, at addresses (`rad.backends.addresses`). They pass
through a short buffer of flags, a byte each, so that every inner loop becomes vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.backends.addresses import numbers_at

FLAGS = 4096
"""Flags in a buffer, a multiple of 8."""

_GATHER, _TOP = np.uint64(0x0102040810204080), np.uint64(56)
_SPREAD, _ONE_BIT_EACH = np.uint64(0x0101010101010101), np.uint64(0x8040201008040201)
_BYTE = np.uint8(0)


@njit(inline="always")
def gather(flags: np.ndarray, count: int, packed: np.ndarray, first: int) -> None:
    """The first `count` flags (0 or 1; those after them change) into bytes from `first` on."""
    octets = (count + 7) // 8
    flags[count : 8 * octets] = 0
    groups = flags.view(np.uint64)
    place = packed[first : first + octets]
    for i in range(octets):
        place[i] = np.uint8((groups[i] * _GATHER) >> _TOP)


@njit(inline="always")
def spread(packed: np.ndarray, first: int, count: int, flags: np.ndarray) -> None:
    """The bits of bytes from `first` on, into `count` flags: 0, or anything else."""
    octets = (count + 7) // 8
    groups = flags.view(np.uint64)
    place = packed[first : first + octets]
    for i in range(octets):
        groups[i] = (np.uint64(place[i]) * _SPREAD) & _ONE_BIT_EACH


@njit(nogil=True, cache=True, error_model="numpy")
def pack_numbers(numbers: int, packed: int, count: int, mask: np.generic) -> None:
    """`bits.pack` of numbers: whether any of the bits in `mask` is set."""
    x, octets = numbers_at(numbers, count, mask), numbers_at(packed, (count + 7) // 8, _BYTE)
    flags = np.empty(FLAGS, np.uint8)
    for start in range(0, count, FLAGS):
        part = x[start : start + FLAGS]
        for i in range(len(part)):
            flags[i] = (part[i] & mask) != 0
        gather(flags, len(part), octets, start // 8)


@njit(nogil=True, cache=True, error_model="numpy")
def unpack_numbers(packed: int, numbers: int, count: int, one: np.generic) -> None:
    """`bits.unpack`: the number `one` where a bit is set, and 0 elsewhere."""
    x, octets = numbers_at(numbers, count, one), numbers_at(packed, (count + 7) // 8, _BYTE)
    flags = np.empty(FLAGS, np.uint8)
    nothing = x.dtype.type(0)
    for start in range(0, count, FLAGS):
        part = x[start : start + FLAGS]
        spread(octets, start // 8, len(part), flags)
        for i in range(len(part)):
            part[i] = one if flags[i] != 0 else nothing


@njit(nogil=True, cache=True, error_model="numpy")
def masked(packed: int, numbers: int, out: int, count: int, like: np.generic) -> None:
    """The numbers where a bit is set, and 0 elsewhere; `out` may be the numbers themselves.

    Those then pass through a buffer: a loop over numbers that overlap what it writes does not
    become vector instructions.
    """
    x, y = numbers_at(numbers, count, like), numbers_at(out, count, like)
    octets = numbers_at(packed, (count + 7) // 8, _BYTE)
    flags, block = np.empty(FLAGS, np.uint8), np.empty(FLAGS, x.dtype)
    nothing = x.dtype.type(0)
    for start in range(0, count, FLAGS):
        source = x[start : start + FLAGS]
        target = block[: len(source)] if numbers == out else y[start : start + FLAGS]
        spread(octets, start // 8, len(source), flags)
        for i in range(len(source)):
            target[i] = source[i] if flags[i] != 0 else nothing
        if numbers == out:
            for i in range(len(source)):
                source[i] = target[i]
