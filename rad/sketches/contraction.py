"""How left^T x_hat is summed, a piece at a time, in float32 at least."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.packing.pieces import joined, pieces

PIECE_BYTES = 1 << 22
"""The most bytes of x_hat that are read densely at a time."""

SMALL_BYTES = 1 << 18
"""Bytes of x_hat up to which all of it is read at once."""

WIDENED_BYTES = 1 << 19
"""Bytes of float32, in which sums run, to which short types are widened at a time."""


def row_pieces(left: Tensor, d: int) -> list[range]:
    """The pieces of rows in which left (rows, m) is multiplied with x_hat (rows, d).

    Two pieces; one where x_hat is small, more where half of it is large. For a short type, each
    piece is what is widened at a time.
    """
    rows, columns = left.shape
    wide = accumulation_dtype(left.dtype)
    if left.dtype != wide:
        return pieces(range(rows), WIDENED_BYTES // ((d + columns) * wide.itemsize))
    row_bytes = d * wide.itemsize
    halves = rows if rows * row_bytes <= SMALL_BYTES else -(-rows // 2)
    return pieces(range(rows), min(halves, PIECE_BYTES // row_bytes))


def by_columns(product: Callable[[Tensor], Tensor], left: Tensor, d: int) -> Tensor:
    """`product(left)`, sums (m, d) for left (rows, m), in the type of left.

    For a short type, some columns of left at a time, whose sums take no more bytes than x does, or
    than WIDENED_BYTES.
    """
    rows, columns = left.shape
    wide = accumulation_dtype(left.dtype)
    if left.dtype == wide:
        return product(left)
    room = max(WIDENED_BYTES, rows * d * left.dtype.itemsize)
    blocks = pieces(range(columns), room // (d * wide.itemsize))
    parts = (left[:, block.start : block.stop] for block in blocks)
    return joined((product(part).to(left.dtype) for part in parts), columns)


def widened_product(left: Tensor, x: Tensor) -> Tensor:
    """left^T x for left (rows, m) and x (rows, k): (m, k), as sums of float32 at least."""
    wide = accumulation_dtype(left.dtype)
    if left.dtype == wide:
        return left.t().mm(x if x.dtype == wide else x.to(wide))
    total = x.new_zeros(left.shape[1], x.shape[1], dtype=wide)
    for piece in row_pieces(left, x.shape[1]):
        here = slice(piece.start, piece.stop)
        total.addmm_(left[here].t().to(wide), x[here].to(wide))
    return total
