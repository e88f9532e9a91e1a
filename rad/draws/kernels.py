# mypy: disallow-untyped-defs=False
"""The draws of `rad.draws.reference` in Triton kernels, in unsigned words.

The functions under `triton.jit` are what kernels call; `words`, `integers` and `signs` are whole
kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws import reference
from rad.dtypes import accumulation_dtype

_WORDS = 1 << 64
ROW = tl.constexpr(reference.ROW % _WORDS)
SLOT = tl.constexpr(reference.SLOT % _WORDS)
FOLD = tl.constexpr(reference.FOLD % _WORDS)
KEPT = tl.constexpr(reference.KEPT)
LARGEST = tl.constexpr(torch.finfo(torch.bfloat16).max)


def wide_type(dtype: torch.dtype) -> Any:
    """What a kernel computes in for numbers of that type."""
    return tl.float64 if accumulation_dtype(dtype) == torch.float64 else tl.float32


@triton.jit
def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def word(key, row, slot):
    return mix(key + ROW * row.to(tl.uint64) + SLOT * tl.cast(slot, tl.uint64))


@triton.jit
def fold_in(key, i):
    return mix(key + FOLD * (tl.cast(i, tl.uint64) + 1))


@triton.jit
def integer(key, row, slot, high):
    """`rad.draws.reference.integers` at rows and slots that broadcast: int32."""
    half = word(key, row, slot // 2) >> tl.cast(slot % 2 * 32, tl.uint64)
    return (((half & 0xFFFFFFFF) * tl.cast(high, tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def short(value, key, row, slot):
    """`rad.draws.casts.cast_at_random` of float32 to bfloat16, left as float32."""
    lane = (word(key, row, slot // 4) >> tl.cast(slot % 4 * 16, tl.uint64)) & 0xFFFF
    bits = (value.to(tl.int32, bitcast=True) + lane.to(tl.int32)) & -0x10000
    return tl.where(tl.abs(value) < LARGEST, bits.to(tl.float32, bitcast=True), value)


@triton.jit
def selector(key, row, column, slot, d, signs: tl.constexpr):
    """Selector `slot` of the given rows: (len(row), len(column)) of 0 and 1, or of -1 and 1."""
    if signs:
        drawn = word(key, row[:, None] * d + column[None, :], slot // 64)
        return ((drawn >> tl.cast(slot % 64, tl.uint64)) & 1).to(tl.float32) * 2 - 1
    return (integer(key, row, slot, d)[:, None] == column[None, :]).to(tl.float32)


WORDS, INTEGERS, SIGNS = range(3)


TILE = 1024
"""Numbers that a program draws at a time."""


@triton.jit
def tile_of(rows, slots, tile_rows: tl.constexpr, tile_slots: tl.constexpr):
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
    row, slot, inside = tile_of(rows, slots, tile_rows, tile_slots)
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


def words(key: Tensor, rows: range, slots: int) -> Tensor:
    """`rad.draws.reference.words`. Any device that Triton runs on, here and below."""
    return _drawn(key, rows, slots, torch.int64, WORDS)


def integers(key: Tensor, rows: range, slots: int, high: int) -> Tensor:
    """`rad.draws.reference.integers`."""
    return _drawn(key, rows, slots, torch.int64, INTEGERS, high)


def signs(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """`rad.draws.reference.signs`."""
    return _drawn(key, rows, slots, dtype, SIGNS)


def _drawn(
    key: Tensor, rows: range, slots: int, dtype: torch.dtype, kind: int, high: int = 0
) -> Tensor:
    out = torch.empty(len(rows), slots, dtype=dtype, device=key.device)
    sizes = tile_sizes(slots, TILE)
    if out.numel():
        step = key.stride(0) if key.dim() else 0
        with torch.cuda.device_of(key):
            _draw[launch_grid(len(rows), slots, sizes)](
                key, out, len(rows), slots, rows.start, high, step, kind=kind, **sizes
            )
    return out


def tile_sizes(slots: int, tile: int, most: int = 128) -> dict[str, Any]:
    """A program's rows and slots, both powers of two."""
    across = min(most, triton.next_power_of_2(max(1, slots)))
    return {"tile_rows": tile // across, "tile_slots": across}


def launch_grid(rows: int, slots: int, sizes: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(rows, sizes["tile_rows"]) * triton.cdiv(slots, sizes["tile_slots"]),)
