"""What stands between the products of small linear layers, in one call each way, compiled by numba.

Made of the loops of `rad.functional.relu`, `rad.packing.bits` and `rad.sketches.sampled_columns`,
which do the same in a call each: for layers of a few thousand numbers, calls are what takes time.
All is at addresses (`rad.backends.addresses`); 0 stands for no packed mask, which means no ReLU.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.backends.addresses import numbers_at
from rad.functional.relu_loops import relu
from rad.packing.bit_loops import masked
from rad.sketches.sampling_loops import sample, weight_grad

_WORD = np.int64(0)


@njit(nogil=True, cache=True, error_model="numpy")
def rectify_and_sample(
    numbers: int,
    packed: int,
    kept: int,
    key: int,
    lowest: np.generic,
    infinity: np.generic,
    zero: np.generic,
    rows: int,
    d: int,
    k: int,
    shared: bool,
) -> None:
    """ReLU of (rows, d) numbers in place with its mask, and k drawn columns of it."""
    if packed:
        relu(numbers, numbers, packed, rows * d, lowest, infinity)
    x = numbers_at(numbers, rows * d, zero).reshape((rows, d))
    word = numbers_at(key, 1, _WORD)[0]
    sample(x, word, 0, shared, False, numbers_at(kept, rows * k, zero).reshape((rows, k)))


@njit(nogil=True, cache=True, error_model="numpy")
def mask_and_contract(
    packed: int,
    grad: int,
    before: int,
    kept: int,
    key: int,
    out: int,
    like: np.generic,
    zero: np.generic,
    rows: int,
    m: int,
    d: int,
    k: int,
) -> bool:
    """The gradient (rows, m) before a ReLU, and with it the weight's (m, d) from k kept columns.

    False where that gradient is not finite: then the weight's is not calculated.
    """
    if packed:
        masked(packed, grad, before, rows * m, like)
    left = numbers_at(before, rows * m, zero).reshape((rows, m))
    values = numbers_at(kept, rows * k, zero).reshape((rows, k))
    total = numbers_at(out, m * d, zero).reshape((m, d))
    word, places = numbers_at(key, 1, _WORD)[0], np.empty(rows * k, np.int64)
    return weight_grad(left, values, word, 0, False, d / k, places, total)
