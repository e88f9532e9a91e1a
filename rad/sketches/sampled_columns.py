"""Sampled columns on the CPU, where compiled loops read and write them as they draw them.

What is kept is that of torch's operators to the bit. Each function says whether the loops took its
arguments, or gives None: numba may be absent, a tensor without memory of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rad import backends
from rad.draws.reference import check_high
from rad.dtypes import LOOP_DTYPES
from rad.packing.pieces import pieces

Array = np.ndarray[Any, Any]

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Types that loops do not know, and what they copy them as."""

ROWS = 512
"""Rows at a time whose gradients stay in cache while they are multiplied out of order."""

PLACES = 1 << 16
"""Kept numbers that are sorted by column at a time, of eight bytes each."""

KEPT_COST, MULTIPLY_COST, RESULT_COST = 8.0, 0.09, 0.5
"""Of `weight_grad`: nanoseconds to sort a kept number, to multiply it with one number of the
gradient and add that to a sum, to write one number of the result."""

SCATTER_COST, DENSE_COST, PRODUCT_COST = 4.0, 0.2, 0.0165
"""Of the dense way: nanoseconds to scatter a kept number, to clear one of x_hat, and for one
multiplication and addition of torch's product. All six were measured on one thread of a Xeon with
AVX-512, on layers of 10 to 1024 features; it is their ratios that decide."""


def loops_take(x: Tensor, key: Tensor) -> bool:
    """Whether compiled loops take that tensor and key."""
    plain = type(x) in (Tensor, nn.Parameter) and not x.is_neg()
    return plain and backends.in_loops(x) and backends.in_loops(key)


def sample(x: Tensor, key: Tensor, k: int, *, shared: bool, distinct: bool) -> Tensor | None:
    """k drawn columns of x (..., d): (..., k). Drawn once for all rows if `shared`."""
    if not (x.dtype in LOOP_DTYPES or x.dtype in BITS) or not loops_take(x, key):
        return None
    from rad.sketches import sampling_loops

    check_high(x.shape[-1])
    kept = torch.empty(*x.shape[:-1], k, dtype=x.dtype)
    sampling_loops.sample(_rows(x), int(key), shared, distinct, _rows(kept))
    return kept


def read(x_hat: Tensor, kept: Tensor, key: Tensor, first: int, *, distinct: bool) -> bool:
    """d/k times kept (rows, k), added to the columns that its rows drew, into x_hat (rows, d)."""
    if not (loops_take(x_hat, key) and loops_take(kept, key)):
        return False
    from rad.sketches import sampling_loops

    scale = x_hat.shape[1] / kept.shape[1]
    sampling_loops.read(kept.numpy(), int(key), first, scale, distinct, x_hat.numpy())
    return True


def spread(kept: Tensor, key: Tensor, d: int, *, distinct: bool) -> Tensor | None:
    """d/k times kept (rows, k), added to the columns that row 0 drew: (rows, d)."""
    if not loops_take(kept, key):
        return None
    from rad.sketches import sampling_loops

    out = torch.empty(len(kept), d, dtype=kept.dtype)
    scale = d / kept.shape[1]
    sampling_loops.spread(kept.numpy(), int(key), scale, distinct, out.numpy())
    return out


def weight_grad(
    left: Tensor, kept: Tensor, key: Tensor, d: int, *, distinct: bool
) -> Tensor | None:
    """left^T x_hat for left (rows, m) and what was kept of x (rows, k): (m, d).

    None, too, where a dense product is cheaper, and where left is not finite.
    """
    (rows, m), k = left.shape, kept.shape[1]
    if not pays(rows, m, d, k) or left.dtype != kept.dtype or left.dtype not in LOOP_DTYPES:
        return None
    if not (loops_take(left, key) and loops_take(kept, key)):
        return None
    from rad.sketches import sampling_loops

    out = torch.empty(m, d, dtype=left.dtype)
    cut = pieces(range(rows), min(ROWS, PLACES // k))
    places = torch.empty(len(cut[0]) * k, dtype=torch.int64).numpy()
    numbers, values, seed = out.numpy(), kept.numpy(), int(key)
    for part in cut:
        here = slice(part.start, part.stop)
        gradients = left[here].contiguous().numpy()
        if not sampling_loops.weight_grad(
            gradients, values[here], seed, part.start, distinct, d / k, places, numbers
        ):
            return None
    return out


def pays(rows: int, m: int, d: int, k: int) -> bool:
    """Whether `weight_grad` is cheaper than scattering x_hat and one dense product."""
    sorted_ones = rows * k * (KEPT_COST + m * MULTIPLY_COST) + m * d * RESULT_COST
    product = rows * d * m * PRODUCT_COST / torch.get_num_threads()
    return rows * k > 0 and sorted_ones < rows * (k * SCATTER_COST + d * DENSE_COST) + product


def _rows(x: Tensor) -> Array:
    """x (..., d) as a numpy array (rows, d)."""
    x = x.detach()
    if x.dtype in BITS:
        x = x.view(BITS[x.dtype])
    return (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).numpy()
