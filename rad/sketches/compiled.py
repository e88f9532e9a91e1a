"""The draws of `rad.sketches.random`, for loops compiled by numba.

The same integers, slot by slot, for all uses of the hash by which a compiled loop draws
what a sketch would. Keys are numpy.uint64: the 64 bits of the int64 tensors. Numba is
imported here and by `rad.pde` only.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from rad.sketches import random

_ROW, _SLOT, _FOLD = (np.uint64(step % 2**64) for step in (random.ROW, random.SLOT, random.FOLD))
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (27, 30, 31, 32))
_ONE, _LOW_HALF = np.uint64(1), np.uint64(0xFFFFFFFF)


def key_word(key: Tensor) -> np.uint64:
    """A key, int64 of shape (), as the loops take it."""
    return np.uint64(int(key) % 2**64)


@njit(inline="always")
def mix(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    return z ^ (z >> _S31)


@njit(inline="always")
def word(key: np.uint64, row: int, slot: int) -> np.uint64:
    """The word of a row and slot."""
    return mix(key + _ROW * np.uint64(row) + _SLOT * np.uint64(slot))


@njit(inline="always")
def fold_in(key: np.uint64, i: int) -> np.uint64:
    """The i-th sub-key."""
    return mix(key + _FOLD * (np.uint64(i) + _ONE))


@njit(inline="always")
def _below(half: np.uint64, high: int) -> int:
    return np.int64((half * np.uint64(high)) >> _S32)  # type: ignore[return-value]


@njit(nogil=True)
def integers(key: np.uint64, row: int, high: int, out: np.ndarray) -> None:
    """`random.integers(key, range(row, row + 1), len(out), high)[0]`, into out (slots,)."""
    count = len(out)
    for pair in range(count // 2):
        drawn = word(key, row, pair)
        out[2 * pair] = _below(drawn & _LOW_HALF, high)
        out[2 * pair + 1] = _below(drawn >> _S32, high)
    if count % 2:
        out[count - 1] = _below(word(key, row, count // 2) & _LOW_HALF, high)


@njit(nogil=True)
def distinct_integers(
    key: np.uint64, row: int, high: int, out: np.ndarray, marks: np.ndarray
) -> None:
    """`random.distinct_integers(key, range(row, row + 1), len(out), high)[0]`, into out (count,).

    `marks` (high,) bool is all False before and after. The stream of draws is not cut, as
    torch's is where it would run short once in 2**64.
    """
    count = len(out)
    if 2 * count <= high:
        _first_distinct(key, row, count, high, marks, out)
        for value in out:
            marks[value] = False
        return
    _first_distinct(key, row, high - count, high, marks, out)
    place = 0
    for value in range(high):
        if marks[value]:
            marks[value] = False
        else:
            out[place] = value
            place += 1


@njit(inline="always")
def _first_distinct(
    key: np.uint64, row: int, count: int, high: int, marks: np.ndarray, out: np.ndarray
) -> None:
    """Mark the first `count` distinct values of the row's stream, and list them in `out`."""
    found = 0
    slot = 0
    while found < count:
        drawn = word(key, row, slot // 2)
        value = _below(drawn >> _S32 if slot % 2 else drawn & _LOW_HALF, high)
        if not marks[value]:
            marks[value] = True
            out[found] = value
            found += 1
        slot += 1
