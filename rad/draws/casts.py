"""Casts to short types that are right on average.

The nearest bfloat16 or float16 of a number is the same every time: a bias of half a unit in its
last place, which averaging does not take away. A number between two of the type goes to one of
them at random instead. Draws are those of a sub-key; numbers that the type holds stay.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rad.draws.dispatch import fold_in, words
from rad.packing.codes import reinterpret
from rad.packing.pieces import joined, pieces

PIECE = 1 << 14
"""Numbers that are cast at a time: draws and bits take some thirty bytes for each."""

DEVICE_PIECE = 1 << 20
"""The same on a GPU, where few large operators are faster."""


class _Short(NamedTuple):
    """A type as float32 sees it: what it drops, and its largest and smallest normal number."""

    dropped: int  # bits of the significand
    largest: float
    tiny: float


SHORT = {
    torch.bfloat16: _Short(16, torch.finfo(torch.bfloat16).max, 0.0),  # subnormal as float32 is
    torch.float16: _Short(13, torch.finfo(torch.float16).max, torch.finfo(torch.float16).tiny),
}


def cast(x: Tensor, dtype: torch.dtype, key: Tensor, use: int, rows: range | None = None) -> Tensor:
    """`cast_at_random` with the sub-key `use` to bfloat16 and float16, `x.to` to other types."""
    if dtype not in SHORT or x.dtype == dtype:
        return x.to(dtype)
    return cast_at_random(x, dtype, fold_in(key, use), rows)


def cast_at_random(x: Tensor, dtype: torch.dtype, key: Tensor, rows: range | None = None) -> Tensor:
    """x (..., d) as bfloat16 or float16, of E[result] = x; what these hold stays as it is.

    Up to half a unit beyond the type's largest number it is that number, further out an infinity
    as in torch. `rows` numbers the rows of x (None: from 0 on); slot s of a row draws lane s % 4
    of word s // 4. `key` may also hold one key a row.
    """
    if not x.numel():
        return x.to(dtype)
    flat = x.reshape(-1, x.shape[-1])
    first = 0 if rows is None else rows.start
    step = (PIECE if x.is_cpu else DEVICE_PIECE) // flat.shape[1]
    parts = (
        _cast_rows(flat[part.start : part.stop], dtype, keys, numbers)
        for part in pieces(range(len(flat)), step)
        for keys in [key[part.start : part.stop] if key.dim() else key]
        for numbers in [range(first + part.start, first + part.stop)]
    )
    return joined(parts, len(flat)).view(x.shape)


def _cast_rows(x: Tensor, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
    """`cast_at_random` of rows x (n, d)."""
    wide = x.to(torch.float32)
    rounded = _rounded(wide, _lanes(key, rows, x.shape[1]), SHORT[dtype]).to(dtype)
    nearest = wide.to(dtype)
    return torch.where(nearest.isfinite(), rounded, nearest)


def _lanes(key: Tensor, rows: range, slots: int) -> Tensor:
    """Independent draws from 0..2**16-1: int32, (len(rows), slots)."""
    drawn = reinterpret(words(key, rows, -(-slots // 4)), torch.int16)
    return drawn[..., :slots].to(torch.int32).bitwise_and_(0xFFFF)


def _rounded(x: Tensor, drawn: Tensor, short: _Short) -> Tensor:
    """float32 numbers that the type holds, x being finite; draws of 16 bits."""
    mask = (1 << short.dropped) - 1
    rounded = reinterpret(reinterpret(x, torch.int32) + (drawn & mask) & ~mask, torch.float32)
    if short.tiny:
        unit = short.tiny * 2.0 ** (short.dropped - 23)
        parts = x.abs() / unit
        up = parts.frac() + drawn * 2.0**-16 >= 1
        whole = (parts.floor() + up) * unit
        rounded = torch.where(x.abs() < short.tiny, whole.copysign(x), rounded)
    return rounded.clamp(-short.largest, short.largest)
