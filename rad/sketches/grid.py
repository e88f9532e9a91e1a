"""The grid of levels that each block of numbers is rounded to, and the noise that decides.

Level i of a block is low + i * step for i = 0..steps, step = 2 * half. `low` is the
smallest value of the block, exactly; `half` is rounded up, so that the levels reach the
largest value and nothing is clipped. Half a step is kept, and differences of halves are
taken, because the difference of two finite numbers may overflow; only the top level may
lie beyond the type's largest number, where a block reaches 0.98 of it. A block of one value
has half = 0 and reads back exactly. One that holds NaN or an infinity has levels that
are not finite: all of it reads back as NaN and infinities (but zeros that have a code of
their own), which nobody overlooks. A block that spans rows takes their numbers along.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rad import backends
from rad.draws.dispatch import words
from rad.draws.reference import PART_MASK, SLOT, signed
from rad.dtypes import LOOP_DTYPES, accumulation_dtype, scale_dtype
from rad.packing.codes import reinterpret

LANE_BITS = 16

NEAR = 1 << 12
"""float32 positions below so many of the smallest parts of a step are rounded at random."""


def fit(x: Tensor, steps: int, *, skip_zeros: bool = False) -> Tensor:
    """`low` and `half` of each block: x (m, n) -> (m, 2). With `skip_zeros`, of its other values.

    half is the smallest number of its type for which fl(fl(max/2 - low/2) / half) <=
    steps, the very operations that `positions` does: no position lies above `steps`.
    """
    wide = accumulation_dtype(x.dtype)
    if x.numel() and x.dtype in LOOP_DTYPES and backends.in_loops(x):
        return _fit_in_loops(x, steps, skip_zeros)
    if skip_zeros:
        other = x != 0
        lowest = torch.where(other, x, math.inf).amin(1)
        highest = torch.where(other, x, -math.inf).amax(1)
        some = other.any(1)
        lowest, highest = lowest.where(some, 0), highest.where(some, 0)
    else:
        lowest, highest = x.amin(1), x.amax(1)
    low = lowest.to(scale_dtype(x.dtype))
    reach = highest.to(wide) * 0.5 - lowest.to(wide) * 0.5
    half = (reach / reach.new_full((), steps)).to(low.dtype)  # by a number, CUDA multiplies
    short = reach / half.to(wide) > steps
    half = torch.where(short, half.nextafter(torch.full_like(half, math.inf)), half)
    return torch.stack([low, half], 1)


def _fit_in_loops(x: Tensor, steps: int, skip_zeros: bool) -> Tensor:
    from rad.sketches.rounding_loops import fit_blocks

    numbers = x.contiguous().numpy()
    bits = numbers.view(np.int32 if x.dtype == torch.float32 else np.int64)
    scales = x.new_empty(len(x), 2)
    fit_blocks(numbers, bits, numbers.dtype.type(steps), skip_zeros, scales.numpy())
    return scales


def positions(x: Tensor, scales: Tensor) -> Tensor:
    """Where x (m, n) lies on its blocks' grids, in steps from `low`: (m, n), float32 at least."""
    half_low, half = _parts(scales, accumulation_dtype(x.dtype))
    at = (x.to(half.dtype) * 0.5).sub_(half_low)
    return at.div_(torch.where(half == 0, 1, half))


def place(at: Tensor, scales: Tensor) -> Tensor:
    """The numbers at those positions (m, n), which it overwrites."""
    half_low, half = _parts(scales, at.dtype)
    return at.mul_(half).add_(half_low).mul_(2)


def squared_step(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """step**2 of each block: (m, 1)."""
    return scales[:, 1:].to(dtype).square() * 4


def _parts(scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low, half = scales.to(dtype).split(1, 1)
    return low * 0.5, half


def uniform(key: Tensor, rows: range, slots: int, bits: int) -> Tensor:
    """Uniform draws from 0..2**bits-1, 16 <= bits <= 30: int32, (len(rows), slots).

    The high 16 bits of slot s are lane s % 4 of word s // 4, with its top bit flipped;
    the low bits are shared by the row, from the word after. So each draw is uniform to
    its last bit at a quarter of a word, and two of a row are independent but for the
    low bits: events that split the range at any point have a covariance below 2**-34.
    `key` may also hold one key a row. The 24 lowest bits of the shared word are `part`.
    """
    drawn = reinterpret(words(key, rows, -(-slots // 4) + 1), torch.int16)
    low = bits - LANE_BITS
    shared = drawn[:, -1:].to(torch.int32) & ((1 << low) - 1)
    return torch.add(shared + (1 << bits - 1), drawn[:, :slots], alpha=1 << low)


def part(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """A uniform draw from [0, 1) for each row, independent of `uniform`'s: (len(rows), 1).

    It rounds at random what is smaller than the smallest part of a step. Numbers of a row share
    it: two codes depend on it at once with a chance of 2**-46 at most.
    """
    shared = words(key + signed(SLOT * (-(-slots // 4))), rows, 1)
    return (shared & PART_MASK).to(dtype).mul_(1 / (PART_MASK + 1))


def near(dtype: torch.dtype, *, dithered: bool) -> float | None:
    """Positions below it, in smallest parts of a step, are rounded at random, others cut off.

    float64 is rounded so everywhere; float32 where cutting off would be a bias of more than
    1 / NEAR of the number's distance from its block's lowest. None: nowhere; what float32 keeps
    of dithered numbers is coarser than a part.
    """
    if dtype == torch.float64:
        return math.inf
    return None if dithered else float(NEAR)
