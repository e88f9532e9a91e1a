"""Normal draws, from the words of the hash."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad.draws.dispatch import words
from rad.packing.pieces import joined, pieces

PIECE = 1 << 14
"""Numbers that are drawn at a time: each takes some twenty bytes of words and angles."""

DEVICE_PIECE = 1 << 20
"""The same on a GPU, where few large operators are faster."""


def normals(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """Independent draws of the standard normal distribution: (len(rows), slots).

    Slots 2s and 2s + 1 are made of word s (Box and Muller, 1958): of its halves, low l and high h,
    sqrt(-2 log((l + 1/2) / 2**32)) times cosine and sine of 2 pi h / 2**32. In float64, then
    rounded: unlike the words, the last bits may differ between devices. No draw is beyond 6.8.
    `key` may also hold one key a row.
    """
    step = (PIECE if key.is_cpu else DEVICE_PIECE) // max(1, slots)
    parts = (
        _normals(key[part.start : part.stop] if key.dim() else key, numbers, slots, dtype)
        for part in pieces(range(len(rows)), step)
        for numbers in [range(rows.start + part.start, rows.start + part.stop)]
    )
    return joined(parts, len(rows))


def _normals(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    drawn = words(key, rows, -(-slots // 2))
    low, high = drawn & 0xFFFFFFFF, (drawn >> 32) & 0xFFFFFFFF
    radius = low.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = high.double().mul_(math.tau * 2.0**-32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(-2)[..., :slots].to(dtype)
