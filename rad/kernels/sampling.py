# mypy: disallow-untyped-defs=False
"""Draws, and sampling with replacement: columns are drawn where they are read, never stored.

`words`, `integers` and `signs` are those of `rad.sketches.random`. `sample` and `spread` are what
`compress` and `decompress` of `SameSample` and `DifferentSample` do. `spread` adds up the values
of a column that a row drew more than once by comparing all pairs of its slots; each of those
slots then writes the same sum: no atomics, so that a gradient is the same every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.kernels.draws import integer, wide_type, word

WORDS, INTEGERS, SIGNS = range(3)
TILE = 1024
"""Numbers that a program draws at a time."""
PAIRS = 4096
"""Pairs of slots that a program compares at a time."""


@triton.jit
def _tile(rows, slots, tile_rows: tl.constexpr, tile_slots: tl.constexpr):
    """A program's rows (tile_rows, 1), int64, its slots (1, tile_slots), and which there are."""
    across = (slots + tile_slots - 1) // tile_slots
    down = (tl.program_id(0) // across).to(tl.int64) * tile_rows
    row = down + tl.arange(0, tile_rows)[:, None]
    slot = tl.program_id(0) % across * tile_slots + tl.arange(0, tile_slots)[None, :]
    return row, slot, (row < rows) & (slot < slots)


@triton.jit
def _draw(
    key, out, rows, slots, first, high, key_step,
    kind: tl.constexpr, tile_rows: tl.constexpr, tile_slots: tl.constexpr,
):  # fmt: skip
    row, slot, inside = _tile(rows, slots, tile_rows, tile_slots)
    keys = tl.load(key + row * key_step, mask=row < rows, other=0).to(tl.uint64)
    number = row + first
    if kind == 0:
        drawn = word(keys, number, slot).to(tl.int64)
    elif kind == 1:
        drawn = integer(keys, number, slot, high).to(tl.int64)
    else:
        bits = word(keys, number, slot // 64) >> (slot % 64).to(tl.uint64)
        drawn = (bits & 1).to(tl.float32) * 2 - 1
    tl.store(out + row * slots + slot, drawn.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sample(
    x, key, kept, rows, slots, d, x_row, x_column,
    different: tl.constexpr, tile_rows: tl.constexpr, tile_slots: tl.constexpr,
):  # fmt: skip
    row, slot, inside = _tile(rows, slots, tile_rows, tile_slots)
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
    row, slot, inside = _tile(rows, slots, tile_rows, tile_slots)
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


def words(key: Tensor, rows: range, slots: int) -> Tensor:
    """`rad.sketches.random.words`. Any device that Triton runs on, here and below."""
    return _drawn(key, rows, slots, torch.int64, WORDS)


def integers(key: Tensor, rows: range, slots: int, high: int) -> Tensor:
    """`rad.sketches.random.integers`."""
    return _drawn(key, rows, slots, torch.int64, INTEGERS, high)


def signs(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """`rad.sketches.random.signs`."""
    return _drawn(key, rows, slots, dtype, SIGNS)


def _drawn(
    key: Tensor, rows: range, slots: int, dtype: torch.dtype, kind: int, high: int = 0
) -> Tensor:
    out = torch.empty(len(rows), slots, dtype=dtype, device=key.device)
    sizes = _sizes(slots, TILE)
    if out.numel():
        step = key.stride(0) if key.dim() else 0
        with torch.cuda.device_of(key):
            _draw[_grid(len(rows), slots, sizes)](
                key, out, len(rows), slots, rows.start, high, step, kind=kind, **sizes
            )
    return out


def sample(x: Tensor, key: Tensor, slots: int, *, different: bool) -> Tensor:
    """The drawn columns of x (..., d): (..., slots). Drawn for each row if `different`."""
    rows = x.reshape(-1, x.shape[-1])
    kept = x.new_empty(*x.shape[:-1], slots)
    sizes = _sizes(slots, TILE)
    if kept.numel():
        with torch.cuda.device_of(x):
            _sample[_grid(len(rows), slots, sizes)](
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
        sizes = _sizes(slots, PAIRS // across, most=across)
        wide = wide_type(dtype)
        with torch.cuda.device_of(kept):
            _spread[_grid(rows, slots, sizes)](
                kept.contiguous(), key, out, rows, slots, first or 0, d,
                different=first is not None, wide=wide, **sizes,
            )  # fmt: skip
    return out


def _sizes(slots: int, tile: int, most: int = 128) -> dict[str, Any]:
    """A program's rows and slots, both powers of two."""
    across = min(most, triton.next_power_of_2(max(1, slots)))
    return {"tile_rows": tile // across, "tile_slots": across}


def _grid(rows: int, slots: int, sizes: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(rows, sizes["tile_rows"]) * triton.cdiv(slots, sizes["tile_slots"]),)
