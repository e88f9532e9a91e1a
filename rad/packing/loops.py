"""Groups of eight codes in loops compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def pack_groups(
    groups: np.ndarray, bits: int, masks: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """`codes.pack_codes` of groups (n,) uint64, into two planes (n,); `high` may be `low`.

    `masks` (3,) leaves pairs, fours and eights of codes.
    """
    shift = np.uint64(8 - bits)
    for i in range(len(groups)):
        word = groups[i]
        word = ((word >> shift) | word) & masks[0]
        word = ((word >> (shift * np.uint64(2))) | word) & masks[1]
        word = ((word >> (shift * np.uint64(4))) | word) & masks[2]
        high[i] = word >> np.uint64(16)
        low[i] = word


@njit(nogil=True, cache=True, error_model="numpy")
def unpack_groups(
    low: np.ndarray, high: np.ndarray, bits: int, masks: np.ndarray, groups: np.ndarray
) -> None:
    """`codes.unpack_codes` of two unsigned planes (n,), into groups (n,) uint64.

    Of 3 bits `high` holds those from the 17th on; of others it is `low`. `masks` (3,)
    leaves fours, pairs and single codes.
    """
    shift = np.uint64(8 - bits)
    for i in range(len(low)):
        word = np.uint64(low[i])
        if bits == 3:
            word |= np.uint64(high[i]) << np.uint64(16)
        word = ((word << (shift * np.uint64(4))) | word) & masks[0]
        word = ((word << (shift * np.uint64(2))) | word) & masks[1]
        groups[i] = ((word << shift) | word) & masks[2]
