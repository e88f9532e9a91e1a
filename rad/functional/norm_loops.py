"""The sums and the gradients of normalisations in few passes over memory, compiled by numba.

g is a gradient by the result, q the normalised numbers as they are read, r the reciprocal of a
deviation, and `extra` D^2 / (12 n): one a row, or one a number. Sums run over SHORT numbers in
their type, and over those in float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Numbers = NDArray[np.floating]

SHORT = 1024


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def layer(
    g: Numbers,
    q: Numbers,
    weight: Numbers,
    r: Numbers,
    extra: Numbers,
    centred: bool,
    out: Numbers,
    by_weight: Numbers,
    by_bias: Numbers,
) -> None:
    """Of rows (n, d) that have one weight a column: the gradient by them, (n, d).

    Adds what they contribute to the gradients by weight and bias, (d,). r (n,); extra (n, 1 or d);
    without a mean unless `centred`.
    """
    rows, d = g.shape
    kind = g.dtype.type
    for row in range(rows):
        total, product = 0.0, 0.0
        for start in range(0, d, SHORT):
            a, b = kind(0), kind(0)
            for i in range(start, min(d, start + SHORT)):
                weighted = g[row, i] * weight[i]
                a += weighted
                b += weighted * q[row, i]
            total += float(a)
            product += float(b)
        scale = r[row]
        constant = scale * kind(total / d) if centred else kind(0)
        slope = scale * kind(product / d)
        if extra.shape[1] == 1:
            whole = scale * (kind(1) + extra[row, 0])
            for i in range(d):
                out[row, i] = whole * (g[row, i] * weight[i]) - slope * q[row, i] - constant
        else:
            for i in range(d):
                weighted = scale * (g[row, i] * weight[i])
                out[row, i] = weighted + weighted * extra[row, i] - slope * q[row, i] - constant
        for i in range(d):
            by_weight[i] += g[row, i] * q[row, i]
            by_bias[i] += g[row, i]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def sums(g: Numbers, q: Numbers, total: Numbers, product: Numbers) -> None:
    """Of each row (n, d) the sums of g and of g q: (n,)."""
    rows, d = g.shape
    kind = g.dtype.type
    for row in range(rows):
        first, second = 0.0, 0.0
        for start in range(0, d, SHORT):
            a, b = kind(0), kind(0)
            for i in range(start, min(d, start + SHORT)):
                a += g[row, i]
                b += g[row, i] * q[row, i]
            first += float(a)
            second += float(b)
        total[row] = first
        product[row] = second


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def combine(
    g: Numbers,
    q: Numbers,
    scale: Numbers,
    slope: Numbers,
    constant: Numbers,
    extra: Numbers,
    out: Numbers,
) -> None:
    """scale g (1 + extra) - slope q - constant of rows (n, d).

    scale, slope and constant (c,), of row, row + c and so on; extra (m, 1), of n / m rows each, or
    (n, d).
    """
    rows, d = g.shape
    channels = len(scale)
    each = rows // extra.shape[0] if extra.shape[1] == 1 else 1
    for row in range(rows):
        channel = row % channels
        a, b, c = scale[channel], slope[channel], constant[channel]
        if extra.shape[1] == 1:
            whole = a * (g.dtype.type(1) + extra[row // each, 0])
            for i in range(d):
                out[row, i] = whole * g[row, i] - b * q[row, i] - c
        else:
            for i in range(d):
                scaled = a * g[row, i]
                out[row, i] = scaled + scaled * extra[row, i] - b * q[row, i] - c
