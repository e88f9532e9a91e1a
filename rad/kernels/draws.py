# mypy: disallow-untyped-defs=False
"""The draws of `rad.sketches` inside a kernel: `rad.sketches.random`'s hash, in unsigned words.

A sketch that keeps k numbers of a row of d is read as k *selectors*, rows of d: the s-th number
kept is the row's product with selector s, times `encode`, and the estimate is the sum of what is
kept times its selectors, times `decode`. Sampling with replacement selects one column (one-hot;
1 and d/k), projection all of them with random signs (1/sqrt(k) both times).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from rad.sketches import DifferentProject, DifferentSample, Project, SameSample, Sketch, casting
from rad.sketches import random as reference
from rad.sketches.base import accumulation_dtype

_WORDS = 1 << 64
ROW = tl.constexpr(reference.ROW % _WORDS)
SLOT = tl.constexpr(reference.SLOT % _WORDS)
FOLD = tl.constexpr(reference.FOLD % _WORDS)
KEPT = tl.constexpr(casting.KEPT)
LARGEST = tl.constexpr(torch.finfo(torch.bfloat16).max)


class Selection(NamedTuple):
    """How a kernel reads a sketch of rows of d: see the module."""

    kept: int
    signs: bool  # projection; else sampling
    different: bool  # each row has draws of its own
    encode: float
    decode: float


def selection(sketch: Sketch, d: int) -> Selection | None:
    """The `Selection` of a sketch, None for one that is not made of selectors drawn by slot."""
    match sketch:
        case SameSample(replacement=True) | DifferentSample(replacement=True):
            kept = sketch.kept(d)
            return Selection(kept, False, isinstance(sketch, DifferentSample), 1.0, d / kept)
        case Project() | DifferentProject():
            kept, scale = sketch.kept(d), sketch.kept(d) ** -0.5
            return Selection(kept, True, isinstance(sketch, DifferentProject), scale, scale)
    return None


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
    """`rad.sketches.random.integers` at rows and slots that broadcast: int32."""
    half = word(key, row, slot // 2) >> tl.cast(slot % 2 * 32, tl.uint64)
    return (((half & 0xFFFFFFFF) * tl.cast(high, tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def short(value, key, row, slot):
    """`rad.sketches.casting.cast_at_random` of float32 to bfloat16, left as float32."""
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
