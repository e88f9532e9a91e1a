"""What a backward pass that is quadratic in what was kept may keep: one dithered copy.

Of `DitheredRounding`, whose grid clips nothing, the error of each number is uniform on a step D
of its block's grid, whatever the number is, and errors of different numbers are uncorrelated (to
2**-34 of a squared step: `rad.sketches.grid.uniform`). So E[q_i q_j] = x_i x_j for i != j, and
E[q_i^2] = x_i^2 + D_i^2 / 12: a known number, which a backward pass subtracts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.functional.strided import numbers
from rad.sketches.base import Sketch, rows_of
from rad.sketches.blockwise import Rounding
from rad.sketches.identity import Identity
from rad.sketches.rounding import DitheredRounding

PIECE = 1 << 17
"""Numbers that are read at a time: what is made of them stays in a core's cache."""

DEVICE_PIECE = 1 << 22
"""The same on a GPU, where few large operators are faster."""


def piece_of(x: Tensor, numbers: int | None = None) -> int:
    """How many numbers, of those of x or of so many on its device, are read at a time.

    All, where they are at most two pieces.
    """
    piece, numbers = PIECE if x.is_cpu else DEVICE_PIECE, x.numel() if numbers is None else numbers
    return piece if numbers > 2 * piece else max(1, numbers)


def check_quadratic(sketch: Sketch) -> None:
    """Raise UsageError for a sketch that would bias a backward pass which reads it twice."""
    if not isinstance(sketch, Identity | DitheredRounding):
        raise UsageError(
            f"{sketch} would bias the gradient of a normalisation or a softmax, whose backward "
            "pass multiplies what is kept by itself: use DitheredRounding, or Identity for torch's "
            "own"
        )


def keep_rows(
    sketch: Rounding,
    read: Callable[[range], Tensor],
    shape: tuple[int, int],
    like: Tensor,
    key: Tensor,
) -> tuple[Tensor, ...]:
    """`sketch.compress` of rows (n, d), which `read(rows)` gives, a piece at a time.

    `like` has their type and device.
    """
    n, d = shape
    piece = piece_of(like, n * d)
    if n * d <= piece or sketch.in_kernels(like, key):
        return sketch.compress(read(range(n)), key)

    def part(numbers: slice) -> Tensor:
        return read(range(numbers.start // d, -(-numbers.stop // d))).reshape(-1)

    return sketch.compress_parts(part, shape, key, piece, row=d)


def keep_last_axis(sketch: Rounding, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """`keep_rows` of the rows along the last axis of x, whatever its strides, float32 at least."""
    wide, d = accumulation_dtype(x.dtype), x.shape[-1]
    if x.dtype == wide and x.is_contiguous():
        return sketch.compress(x, key)

    def read(rows: range) -> Tensor:
        return numbers(x, slice(rows.start * d, rows.stop * d)).view(len(rows), d).to(wide)

    shape = (len(rows_of(x.shape)), d)
    return keep_rows(sketch, read, shape, x.new_empty(0, dtype=wide), key)


def error_variances(kept: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """D^2 / 12 of each block of what was kept: (blocks,)."""
    return kept[-1][:, 1].to(dtype).square() / 3  # the grid holds half a step


def of_rows(sketch: DitheredRounding, variances: Tensor, q: Tensor, rows: range) -> Tensor:
    """The `error_variances`, or multiples of them, of those rows q (n, d): (n, 1) or (n, d)."""
    if sketch.block is None:
        variance = variances[rows.start : rows.stop, None]
    else:
        d, size = q.shape[1], sketch.block
        first, last = rows.start * d, rows.stop * d
        blocks = variances[first // size : -(-last // size)].repeat_interleave(size)
        start = first - first // size * size
        variance = blocks[start : start + last - first].view(q.shape)
    return torch.where(q == 0, 0, variance) if sketch.zero_code else variance


def number_variances(sketch: Sketch, x: Tensor) -> Tensor:
    """D_i^2 / 12 of each number of the rows x (..., d): 0 for `Identity`.

    Raises UsageError for sketches other than `DitheredRounding` and `Identity`.
    """
    check_quadratic(sketch)
    return (
        sketch.element_variance(x) if isinstance(sketch, DitheredRounding) else torch.zeros_like(x)
    )
