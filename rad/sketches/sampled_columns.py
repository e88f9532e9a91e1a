"""Sampled columns on the CPU, where compiled loops read and write them as they draw them.

What is kept is that of torch's operators to the bit. A function returns None (`read`: False) where
the loops cannot take its arguments: numba may be absent, or a tensor without memory of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rad import backends
from rad.draws.reference import check_high
from rad.dtypes import LOOP_DTYPES
from rad.sketches.contraction import row_pieces

Array = np.ndarray[Any, Any]

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Types that loops do not know, and what they copy them as."""

_COPIED, _PLAIN = (*LOOP_DTYPES, *BITS), (Tensor, nn.Parameter)

ROWS = 512
"""Rows at a time whose gradients stay in cache while they are multiplied out of order."""

PLACES = 1 << 16
"""Kept numbers that are sorted by column at a time, of eight bytes each."""

KEPT_COST, MULTIPLY_COST, RESULT_COST = 6.0, 0.09, 0.5
"""Of `weight_grad`: nanoseconds to sort a kept number, to multiply it with one number of the
gradient and add that to a sum, to write one number of the result."""

SCATTER_COST, DENSE_COST, PRODUCT_COST = 3.0, 0.2, 0.0165
"""Of the dense way: nanoseconds to scatter a kept number, to clear one of x_hat, and for one
multiplication and addition of torch's product. Measured on one thread of a Xeon with AVX-512, on
layers of 10 to 784 features, but for sorting and scattering, which are set lower: the way they then
choose was on an EPYC with AVX2, too, the faster one or took at most 1.4 times as long."""


def loops_take(x: Tensor, key: Tensor) -> bool:
    """Whether compiled loops take that tensor, of a type that they know, and key: a single one."""
    plain = type(x) in _PLAIN and not x.is_neg() and not key.dim()
    return plain and key.is_cpu and backends.in_loops(x) and backends.is_readable(key)


def sample(
    x: Tensor, key: Tensor, k: int, *, shared: bool, distinct: bool, first: int = 0
) -> Tensor | None:
    """k drawn columns of x (..., d): (..., k). Drawn once for all rows if `shared`.

    Its rows are numbered from `first` on.
    """
    dtype, shape = x.dtype, x.shape
    if dtype not in _COPIED or not loops_take(x, key):
        return None
    from rad.sketches import sampling_loops

    check_high(shape[-1])
    kept = torch.empty(*shape[:-1], k, dtype=dtype, device="cpu")
    x = x.detach() if x.requires_grad else x
    if len(shape) == 2 and dtype in LOOP_DTYPES:
        sampling_loops.sample(x.numpy(), int(key), first, shared, distinct, kept.numpy())
    else:
        sampling_loops.sample(_rows(x), int(key), first, shared, distinct, _rows(kept))
    return kept


def read(x_hat: Tensor, kept: Tensor, key: Tensor, first: int, *, distinct: bool) -> bool:
    """d/k times kept (rows, k), added to the columns that its rows drew, into x_hat (rows, d)."""
    if not (loops_take(x_hat, key) and loops_take(kept, key)):
        return False
    from rad.sketches import sampling_loops

    scale = x_hat.shape[1] / kept.shape[1]
    out = x_hat.detach().numpy()
    sampling_loops.read(kept.detach().numpy(), int(key), first, scale, distinct, out)
    return True


def shared_weight_grad(
    left: Tensor, kept: Tensor, key: Tensor, d: int, *, distinct: bool
) -> Tensor | None:
    """left^T x_hat for left (rows, m) and kept (rows, k), of columns drawn once: (m, d)."""
    if not (left.is_cpu and _same_type(left, kept) and backends.in_loops(kept)):
        return None
    return spread(left.t().mm(kept), key, d, distinct=distinct)


def spread(kept: Tensor, key: Tensor, d: int, *, distinct: bool) -> Tensor | None:
    """d/k times kept (rows, k), added to the columns that row 0 drew: (rows, d)."""
    if not loops_take(kept, key):
        return None
    from rad.sketches import sampling_loops

    rows, k = kept.shape
    out = torch.empty(rows, d, dtype=kept.dtype, device="cpu")
    sampling_loops.spread(kept.detach().numpy(), int(key), d / k, distinct, out.numpy())
    return out


def weight_grad(
    left: Tensor, kept: Tensor, key: Tensor, d: int, *, distinct: bool
) -> Tensor | None:
    """left^T x_hat for left (rows, m) and kept (rows, k), columns being each row's: (m, d).

    From what was kept alone where that `pays` and left is finite, or else by dense products.
    """
    if not (_same_type(left, kept) and loops_take(left, key) and backends.in_loops(kept)):
        return None
    (rows, m), k, total = left.shape, kept.shape[1], None
    if pays(rows, m, d, k):
        total = _from_kept_alone(left, kept, int(key), d, distinct)
    return _by_dense_products(left, kept, int(key), d, distinct) if total is None else total


def _same_type(left: Tensor, kept: Tensor) -> bool:
    return left.dtype == kept.dtype and left.dtype in LOOP_DTYPES


def _from_kept_alone(left: Tensor, kept: Tensor, key: int, d: int, distinct: bool) -> Tensor | None:
    """`weight_grad` by the loop of that name; None where left is not finite."""
    from rad.sketches import sampling_loops

    rows, k = kept.shape
    step = max(1, min(rows, ROWS, PLACES // k))
    out = torch.empty(left.shape[1], d, dtype=left.dtype, device="cpu")
    places = np.empty(step * k, np.int64)
    left, numbers, values = left.detach(), out.numpy(), kept.detach().numpy()
    for first in range(0, max(1, rows), step):
        part = left if step >= rows else left[first : first + step]
        gradients = part.contiguous().numpy()
        if not sampling_loops.weight_grad(
            gradients, values[first : first + step], key, first, distinct, d / k, places, numbers
        ):
            return None
    return out


def _by_dense_products(left: Tensor, kept: Tensor, key: int, d: int, distinct: bool) -> Tensor:
    """`weight_grad` in pieces, whose x_hat is read and multiplied."""
    from rad.sketches import sampling_loops

    cut = row_pieces(left, d)
    buffer = torch.empty(len(cut[0]), d, dtype=left.dtype, device="cpu")
    numbers, values, scale = buffer.numpy(), kept.detach().numpy(), d / kept.shape[1]
    if len(cut) == 1:
        sampling_loops.read(values, key, 0, scale, distinct, numbers)
        return left.t().mm(buffer)
    total = torch.empty(left.shape[1], d, dtype=left.dtype, device="cpu")
    for piece in cut:
        part, count = slice(piece.start, piece.stop), len(piece)
        sampling_loops.read(values[part], key, piece.start, scale, distinct, numbers[:count])
        total.addmm_(left[part].t(), buffer[:count], beta=min(piece.start, 1))
    return total


def pays(rows: int, m: int, d: int, k: int) -> bool:
    """Whether `weight_grad` is cheaper than scattering x_hat and one dense product."""
    sorted_ones = rows * k * (KEPT_COST + m * MULTIPLY_COST) + m * d * RESULT_COST
    product = rows * d * m * PRODUCT_COST / torch.get_num_threads()
    return rows * k > 0 and sorted_ones < rows * (k * SCATTER_COST + d * DENSE_COST) + product


def in_one_piece(rows: int, m: int, d: int, k: int) -> bool:
    """Whether `weight_grad` is best calculated from what was kept alone, and all of it at once."""
    return rows <= min(ROWS, PLACES // k) and pays(rows, m, d, k)


def _rows(x: Tensor) -> Array:
    """x (..., d) as a numpy array (rows, d)."""
    if x.dtype in BITS:
        x = x.view(BITS[x.dtype])
    return x.reshape(-1, x.shape[-1]).numpy()
