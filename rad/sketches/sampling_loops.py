"""Sampled columns in loops compiled by numba: drawn where they are read, never stored.

Columns are those of `rad.draws.reference.integers`, or `distinct_integers` where each is drawn
once; `key` is the key's integer. Rows are numbered from `first` on. Cached on disk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.draws import loops

COLUMNS = 16
"""Columns that `weight_grad` sums at a time: a cache line of the result."""

WIDTH = 384
"""Output features that it sums at a time: with so many columns' sums they stay in cache."""


@njit(inline="always")
def _marks(high: int, distinct: bool) -> np.ndarray:
    return np.zeros(high if distinct else 0, np.bool_)


@njit(inline="always")
def _draw(
    key: int, row: int, high: int, distinct: bool, columns: np.ndarray, marks: np.ndarray
) -> None:
    if distinct:
        loops.distinct_integers(np.uint64(key), row, high, columns, marks)
    else:
        loops.integers(np.uint64(key), row, high, columns)


@njit(nogil=True, cache=True, error_model="numpy")
def sample(
    x: np.ndarray, key: int, first: int, shared: bool, distinct: bool, kept: np.ndarray
) -> None:
    """The drawn columns of x (rows, d), into kept (rows, k): the first row's if `shared`."""
    rows, d = x.shape
    columns, marks = np.empty(kept.shape[1], np.int64), _marks(d, distinct)
    for row in range(rows):
        if row == 0 or not shared:
            _draw(key, first + row, d, distinct, columns, marks)
        for slot in range(len(columns)):
            kept[row, slot] = x[row, columns[slot]]


@njit(nogil=True, cache=True, error_model="numpy")
def read(
    kept: np.ndarray, key: int, first: int, scale: float, distinct: bool, out: np.ndarray
) -> None:
    """kept (rows, k) times `scale`, into the columns of out (rows, d) that each row drew."""
    rows, d = out.shape
    columns, marks = np.empty(kept.shape[1], np.int64), _marks(d, distinct)
    factor = out.dtype.type(scale)
    for row in range(rows):
        _draw(key, first + row, d, distinct, columns, marks)
        numbers = out[row]
        numbers[:] = 0
        for slot in range(len(columns)):
            numbers[columns[slot]] += kept[row, slot]
        for j in range(d):
            numbers[j] *= factor


@njit(nogil=True, cache=True, error_model="numpy")
def spread(kept: np.ndarray, key: int, scale: float, distinct: bool, out: np.ndarray) -> None:
    """kept (rows, k) times `scale`, into the drawn columns of out (rows, d), row 0's for all."""
    rows, d = out.shape
    columns, factor = np.empty(kept.shape[1], np.int64), out.dtype.type(scale)
    _draw(key, 0, d, distinct, columns, _marks(d, distinct))
    for row in range(rows):
        out[row] = 0
        for slot in range(len(columns)):
            out[row, columns[slot]] += kept[row, slot] * factor


@njit(inline="always")
def _is_finite(left: np.ndarray) -> bool:
    sums = np.zeros(left.shape[1], left.dtype)
    for row in range(left.shape[0]):
        numbers = left[row]
        for i in range(len(sums)):
            sums[i] += numbers[i] * left.dtype.type(0)
    return not np.isnan(sums).any()


@njit(nogil=True)
def _sort(
    kept: np.ndarray, key: int, first: int, distinct: bool, ends: np.ndarray, places: np.ndarray
) -> None:
    """The places of kept's numbers but zeros, column by column: row * 2**32 + slot.

    Those of column j go into places[ends[j - 1] : ends[j]]; ends (d,) is 0 before.
    """
    rows, k = kept.shape
    d = len(ends)
    columns, marks = np.empty(k, np.int64), _marks(d, distinct)
    for row in range(rows):
        _draw(key, first + row, d, distinct, columns, marks)
        for slot in range(k):
            ends[columns[slot]] += kept[row, slot] != 0
    total = 0
    for j in range(d):
        count = ends[j]
        ends[j] = total
        total += count
    for row in range(rows):
        _draw(key, first + row, d, distinct, columns, marks)
        for slot in range(k):
            if kept[row, slot] != 0:
                j = columns[slot]
                places[ends[j]] = (row << 32) + slot
                ends[j] += 1


@njit(inline="always")
def _add_rows(sums: np.ndarray, left: np.ndarray, kept: np.ndarray, places: np.ndarray) -> None:
    """Adds the rows of left, times the numbers at those places, to sums."""
    mask = (1 << 32) - 1
    whole = len(places) // 4 * 4
    for p in range(0, whole, 4):
        p0, p1, p2, p3 = places[p], places[p + 1], places[p + 2], places[p + 3]
        v0, v1 = kept[p0 >> 32, p0 & mask], kept[p1 >> 32, p1 & mask]
        v2, v3 = kept[p2 >> 32, p2 & mask], kept[p3 >> 32, p3 & mask]
        row0, row1 = left[p0 >> 32], left[p1 >> 32]
        row2, row3 = left[p2 >> 32], left[p3 >> 32]
        for i in range(len(sums)):
            sums[i] += (v0 * row0[i] + v1 * row1[i]) + (v2 * row2[i] + v3 * row3[i])
    for p in range(whole, len(places)):
        value = kept[places[p] >> 32, places[p] & mask]
        numbers = left[places[p] >> 32]
        for i in range(len(sums)):
            sums[i] += value * numbers[i]


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _store(
    block: np.ndarray, scale: float, add: bool, low: int, high: int, column: int, out: np.ndarray
) -> None:
    """Columns' sums times `scale` into rows `low` to `high` of out from a column on, or added."""
    count = min(COLUMNS, out.shape[1] - column)
    if add:
        for i in range(high - low):
            line = out[low + i, column : column + count]
            for c in range(count):
                line[c] += block[c, i] * scale
    elif count == COLUMNS:
        for i in range(high - low):
            line = out[low + i, column : column + COLUMNS]
            for c in range(COLUMNS):
                line[c] = block[c, i] * scale
    else:
        for i in range(high - low):
            line = out[low + i, column : column + count]
            for c in range(count):
                line[c] = block[c, i] * scale


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def weight_grad(
    left: np.ndarray,
    kept: np.ndarray,
    key: int,
    first: int,
    distinct: bool,
    scale: float,
    places: np.ndarray,
    out: np.ndarray,
) -> bool:
    """left^T x_hat for left (rows, m) and kept (rows, k), into out (m, d).

    Added to it where `first` is not 0. `places` (rows * k,) int64 is overwritten. Each number that
    was kept is multiplied with a row of left, a contiguous run, and added to its column's sums.
    Zeros are left out: where left is not finite, so that they would turn to NaN, nothing is done
    and the result is False.
    """
    if not _is_finite(left):
        return False
    m, d = out.shape
    ends = np.zeros(d, np.int64)
    _sort(kept, key, first, distinct, ends, places)
    factor = out.dtype.type(scale)
    width = -(-m // -(-m // WIDTH))
    block = np.empty((COLUMNS, width), out.dtype)
    for low in range(0, m, width):
        high = min(low + width, m)
        part = left if width == m else left[:, low:high].copy()
        for column in range(0, d, COLUMNS):
            count = min(COLUMNS, d - column)
            for c in range(count):
                j = column + c
                sums = block[c, : high - low]
                sums[:] = 0
                start = ends[j - 1] if j else 0
                _add_rows(sums, part, kept, places[start : ends[j]])
            _store(block, factor, first > 0, low, high, column, out)
    return True
