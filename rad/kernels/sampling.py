# mypy: disallow-untyped-defs=False
"""Sampling with replacement: columns are drawn where they are read, never stored.

`sample` and `spread` are what `compress` and `decompress` of `rad.sketches.SameSample` and
`rad.sketches.DifferentSample` do. `spread` adds up the values of a column that a row drew more
than once by comparing all pairs of its slots; each of those slots then writes the same sum: no
atomics, so that a gradient is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws.kernels import (
    TILE,
    integer,
    launch_grid,
    tile_of,
    tile_sizes,
    wide_type,
)

PAIRS = 4096
"""Pairs of slots that a program compares at a time."""


@triton.jit
def _sample(
    x, key, kept, rows, slots, d, x_row, x_column,
    different: tl.constexpr, tile_rows: tl.constexpr, tile_slots: tl.constexpr,
):  # fmt: skip
    row, slot, inside = tile_of(rows, slots, tile_rows, tile_slots)
    drawn_row = row if different else tl.zeros((1, 1), tl.int64)
    column = integer(tl.load(key).to(tl.uint64), drawn_row, slot, d).to(tl.int64)
    value = tl.load(x + row * x_row + column * x_column, mask=inside)
    tl.store(kept + row * slots + slot, value, mask=inside)


@triton.jit
def _spread(
    kept, key, out, rows, slots, first, d,
    different: tl.constexpr, wide: tl.constexpr,
    tile_rows: tl.constexpr, tile_slots: tl.constexpr,
):  # fmt: skip
    row, slot, inside = tile_of(rows, slots, tile_rows, tile_slots)
    drawn_row = row + first if different else tl.zeros((1, 1), tl.int64)
    word_of_key = tl.load(key).to(tl.uint64)
    column = integer(word_of_key, drawn_row, slot, d)
    total = tl.zeros((tile_rows, tile_slots), wide)
    for start in range(0, slots, tile_slots):
        other = start + tl.arange(0, tile_slots)[None, :]
        there = (row < rows) & (other < slots)
        value = tl.load(kept + row * slots + other, mask=there, other=0).to(wide)
        same = column[:, :, None] == integer(word_of_key, drawn_row, other, d)[:, None, :]
        total += tl.sum(tl.where(same, value[:, None, :], 0.0), 2)
    scale = (tl.cast(d, tl.float64) / tl.cast(slots, tl.float64)).to(wide)
    scaled = (total * scale).to(out.dtype.element_ty)
    tl.store(out + row * d + column, scaled, mask=inside)


def sample(x: Tensor, key: Tensor, slots: int, *, different: bool) -> Tensor:
    """The drawn columns of x (..., d): (..., slots). Drawn for each row if `different`."""
    rows = x.reshape(-1, x.shape[-1])
    kept = x.new_empty(*x.shape[:-1], slots)
    sizes = tile_sizes(slots, TILE)
    if kept.numel():
        with torch.cuda.device_of(x):
            _sample[launch_grid(len(rows), slots, sizes)](
                rows, key, kept, len(rows), slots, rows.shape[1], *rows.stride(),
                different=different, **sizes,
            )  # fmt: skip
    return kept


def spread(
    kept: Tensor, key: Tensor, d: int, dtype: torch.dtype, *, first: int | None = None
) -> Tensor:
    """d / slots times what `sample` kept (..., slots), added to the drawn columns: (..., d).

    Rows are numbered from `first` on and have draws of their own; None: they share one.
    """
    slots = kept.shape[-1]
    out = kept.new_zeros(*kept.shape[:-1], d, dtype=dtype)
    if out.numel():
        rows = kept.numel() // slots
        across = min(32, triton.next_power_of_2(slots))
        sizes = tile_sizes(slots, PAIRS // across, most=across)
        wide = wide_type(dtype)
        with torch.cuda.device_of(kept):
            _spread[launch_grid(rows, slots, sizes)](
                kept.contiguous(), key, out, rows, slots, first or 0, d,
                different=first is not None, wide=wide, **sizes,
            )  # fmt: skip
    return out
