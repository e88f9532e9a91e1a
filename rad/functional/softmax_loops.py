"""The gradient of a softmax in two passes over each row, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Numbers = NDArray[np.floating]

SHORT = 1024
"""Numbers that are summed in their type; sums of more run in float64."""


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def gradient(g: Numbers, q: Numbers, extra: Numbers, out: Numbers) -> None:
    """q (g - <q, g>) + g extra of rows (n, d), into `out`, which may be q; extra (n, 1 or d)."""
    rows, d = g.shape
    kind = g.dtype.type
    for row in range(rows):
        total = 0.0
        for start in range(0, d, SHORT):
            part = kind(0)
            for i in range(start, min(d, start + SHORT)):
                part += g[row, i] * q[row, i]
            total += float(part)
        slope = kind(total)
        if extra.shape[1] == 1:
            variance = extra[row, 0]
            for i in range(d):
                out[row, i] = q[row, i] * (g[row, i] - slope) + g[row, i] * variance
        else:
            for i in range(d):
                out[row, i] = q[row, i] * (g[row, i] - slope) + g[row, i] * extra[row, i]
