"""Orthonormal directions: the leading ones of a tensor's rows, and random ones beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rad.backends import is_readable
from rad.draws.normal import normals
from rad.draws.reference import make_key
from rad.dtypes import accumulation_dtype
from rad.packing.pieces import pieces

SEED = 0x5052494E
"""Of the draws from which leading directions are sought: the same for all tensors and keys."""

ROUNDS = 2
"""Rounds of the search: what is left of normal rows is then mostly within 5% of the least."""

PIECE = 1 << 16
"""Numbers of x that are read at a time, in float32 at least."""


def leading_directions(x: Tensor, count: int) -> Tensor:
    """Orthonormal columns close to the `count` leading right singular vectors of each matrix of x.

    By subspace iteration (Halko, Martinsson and Tropp, 2011): Q <- orth(x^T x Q), ROUNDS times from
    orth(x^T S), S normal draws that are the same for all x. A function of x alone, and the same to
    the bit for x times a power of two. Where the rows have no more than `count` directions, all of
    them are found. Rows whose sum is not finite are left out.
    Shapes: x (s, n, d) -> (s, d, count), of the dtype in which sums run; 0 <= count < d.
    """
    groups, rows, d = x.shape
    wide = accumulation_dtype(x.dtype)
    if count == 0:
        return x.new_zeros(groups, d, 0, dtype=wide)
    start = normals(make_key(SEED, x.device), range(rows), count, wide)
    found = x.new_zeros(groups, d, count, dtype=wide)
    for part, here in _finite_rows(x):
        found += part.mT @ start[here.start : here.stop]
    scale = _inverse_power(found.abs().amax((1, 2), keepdim=True))
    for _ in range(ROUNDS):
        read = orthonormal(found).mul_(scale)  # x^T x would leave the range before x does
        found = torch.zeros_like(found)
        for part, _ in _finite_rows(x):
            found.baddbmm_(part.mT, part @ read)
    return orthonormal(found)


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span of columns (..., d, k), k <= d: the same shape.

    By Householder reflections, with the signs of the method of Gram and Schmidt: the first j span
    what the first j given columns span, whichever library does it.
    """
    basis, coefficients = torch.linalg.qr(columns)
    own = coefficients.diagonal(dim1=-2, dim2=-1)
    return basis.mul_(torch.where(own < 0, -1, 1)[..., None, :])


def _finite_rows(x: Tensor) -> Iterator[tuple[Tensor, range]]:
    """Rows of x (s, n, d), some at a time, with zeros in place of those that are not finite."""
    groups, rows, d = x.shape
    for here in pieces(range(rows), PIECE // max(1, groups * d)):
        part = x[:, here.start : here.stop].to(accumulation_dtype(x.dtype))
        finite = part.sum(2, keepdim=True).isfinite()
        is_known = part.is_cpu and is_readable(part)  # elsewhere one would have to wait for it
        yield (part if is_known and finite.all() else part.where(finite, 0)), here


def _inverse_power(largest: Tensor) -> Tensor:
    """The power of two that brings numbers into [1/2, 1); 1 for those that are no normal number."""
    usual = (largest >= torch.finfo(largest.dtype).tiny) & largest.isfinite()
    return torch.where(usual, torch.frexp(largest).mantissa / largest, 1)
