"""The draws of `rad.draws.reference` in loops compiled by numba.

The same integers, slot by slot. Keys are numpy.uint64: the 64 bits of the int64 tensors.
What draws many rows (`*_rows`) takes the keys of all rows, or one for all, and writes into
`out` (rows, slots) from row `first` on; it is compiled once and cached on disk beside this
file. Numba is imported by the modules of compiled loops only.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from rad.backends.addresses import numbers_at
from rad.draws import reference

_STEPS = (reference.ROW, reference.SLOT, reference.FOLD)
_ROW, _SLOT, _FOLD = (np.uint64(step % 2**64) for step in _STEPS)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (27, 30, 31, 32))
_COUNT = np.int64(0)
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


@njit(nogil=True, cache=True)
def next_key(key: int, calls: int, is_one_of_many: bool, replica: int) -> int:
    """The key of a call, from addresses of a layer's key and of its count, which is advanced.

    That of the replica if the process `is_one_of_many`. A signed word.
    """
    count = numbers_at(calls, 1, _COUNT)
    word = np.uint64(numbers_at(key, 1, _COUNT)[0])
    if is_one_of_many:
        word = fold_in(word, replica)
    word = fold_in(word, count[0])
    count[0] += 1
    return int(np.int64(word))


@njit(inline="always")
def row_key(keys: np.ndarray, row: int) -> np.uint64:
    """The key of a row: its own, or the one of all."""
    return keys[row if len(keys) > 1 else 0]


@njit(nogil=True, cache=True)
def step_key_rows(key: np.ndarray, first: int, out: np.ndarray) -> None:
    """`reference.step_keys` of a key (1,), into out (steps,) uint64."""
    for step in range(len(out)):
        out[step] = fold_in(key[0], first + step)


@njit(nogil=True, cache=True)
def row_key_rows(keys: np.ndarray, rows: int, out: np.ndarray) -> None:
    """`reference.row_keys`, into out (steps * rows,) uint64."""
    for step in range(len(keys)):
        key = keys[step] - _ROW * np.uint64(step * rows)
        for row in range(rows):
            out[step * rows + row] = key


@njit(nogil=True, cache=True)
def word_rows(keys: np.ndarray, first: int, out: np.ndarray) -> None:
    """`reference.words`, into out (rows, slots) uint64."""
    for row in range(out.shape[0]):
        key = row_key(keys, row)
        for slot in range(out.shape[1]):
            out[row, slot] = word(key, first + row, slot)


@njit(nogil=True, cache=True)
def integer_rows(keys: np.ndarray, first: int, high: int, out: np.ndarray) -> None:
    """`reference.integers`, into out (rows, slots)."""
    for row in range(out.shape[0]):
        integers(row_key(keys, row), first + row, high, out[row])


@njit(nogil=True, cache=True)
def distinct_integer_rows(keys: np.ndarray, first: int, high: int, out: np.ndarray) -> None:
    """`reference.distinct_integers`, into out (rows, count)."""
    marks = np.zeros(high, np.bool_)
    for row in range(out.shape[0]):
        distinct_integers(row_key(keys, row), first + row, high, out[row], marks)


@njit(nogil=True, cache=True)
def sign_rows(keys: np.ndarray, first: int, out: np.ndarray) -> None:
    """`reference.signs`, into out (rows, slots), floating."""
    slots = out.shape[1]
    for row in range(out.shape[0]):
        key = row_key(keys, row)
        for start in range(0, slots, 64):
            drawn = word(key, first + row, start // 64)
            for bit in range(min(64, slots - start)):
                out[row, start + bit] = np.int64((drawn >> np.uint64(bit)) & _ONE) * 2 - 1


@njit(inline="always")
def _below(half: np.uint64, high: int) -> int:
    return np.int64((half * np.uint64(high)) >> _S32)  # type: ignore[return-value]


@njit(nogil=True)
def integers(key: np.uint64, row: int, high: int, out: np.ndarray) -> None:
    """Row `row` of `reference.integers`, into out (slots,)."""
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
    """Row `row` of `reference.distinct_integers`, into out (count,).

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
