# mypy: disallow-untyped-defs=False
"""Rounding: fit, round and pack in two passes over memory; unpack and read in one.

`compress` and `decompress` are those of `rad.sketches.blockwise.Rounding`, in the order and type of
the operations of `rad.sketches.grid`, so that grids, codes and estimates are the same: divisions
are rounded to the nearest, and no product is fused with a sum. A number's *place* is its index
in the flattened tensor. Numbers that are not finite have codes of their own here; that they read
back as NaN or infinities holds all the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws.kernels import wide_type, word
from rad.draws.reference import PART_MASK
from rad.dtypes import scale_dtype
from rad.packing.codes import PLANES, Blocks

PART = tl.constexpr(PART_MASK)
TILE = 1024
OCTETS = 128
EXACTLY: dict[str, Any] = {"enable_fp_fusion": False}
"""Launch options: a product and a sum are rounded one by one, as torch does."""


@triton.jit
def _divided(x, y):
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _next_up(x):
    """The next larger number of the type, of x >= 0."""
    if x.dtype == tl.float64:
        larger = (x.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
    elif x.dtype == tl.bfloat16:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) + 1
        larger = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        larger = (x.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    return larger


@triton.jit
def _fit(
    x, scales, count, size, steps,
    skip_zeros: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * size
    lows = tl.full((tile,), float("inf"), wide)
    highs = tl.full((tile,), float("-inf"), wide)
    nans = tl.zeros((tile,), tl.int32)
    for start in range(0, size, tile):
        i = start + tl.arange(0, tile)
        inside = (i < size) & (first + i < count)
        value = tl.load(x + first + i, mask=inside, other=0).to(wide)
        nans += (value != value).to(tl.int32)
        counted = (inside & (value != 0)) if skip_zeros else inside
        lows = tl.where(counted & (value < lows), value, lows)
        highs = tl.where(counted & (value > highs), value, highs)
    low, high = tl.min(lows, 0), tl.max(highs, 0)
    empty = low > high  # zeros alone
    nan = tl.sum(nans, 0) > 0
    low = tl.where(nan, float("nan"), tl.where(empty, 0.0, low)).to(wide)
    high = tl.where(nan, float("nan"), tl.where(empty, 0.0, high)).to(wide)
    top = tl.cast(steps, wide)
    reach = high * 0.5 - low * 0.5
    half = _divided(reach, top).to(scales.dtype.element_ty)
    half = tl.where(_divided(reach, half.to(wide)) > top, _next_up(half), half)
    place = scales + tl.program_id(0).to(tl.int64) * 2
    tl.store(place, low.to(scales.dtype.element_ty))
    tl.store(place + 1, half)


@triton.jit
def uniform(key, block, at, size, fraction_bits: tl.constexpr):
    """`rad.sketches.grid.uniform` of rows of `size`, at those rows and slots: int32."""
    low_bits: tl.constexpr = fraction_bits - 16
    shift = (at % 4 * 16).to(tl.uint64)
    lane = ((word(key, block, at // 4) >> shift) & 0xFFFF).to(tl.int32)
    shared = (word(key, block, (size + 3) // 4) >> 48).to(tl.int32) & ((1 << low_bits) - 1)
    return shared + (1 << (fraction_bits - 1)) + ((lane ^ 0x8000) - 0x8000) * (1 << low_bits)


@triton.jit
def part(key, block, size, wide: tl.constexpr):
    """`rad.sketches.grid.part` of those rows of `size`: of the type `wide`."""
    shared = word(key, block, (size + 3) // 4)
    return (shared & PART).to(tl.int64).to(wide) * (1.0 / (PART + 1))


@triton.jit
def _encode(
    x, scales, key, low_plane, high_plane, count, size, steps,
    bits: tl.constexpr, zero_code: tl.constexpr, near: tl.constexpr, wide: tl.constexpr,
    octets: tl.constexpr,
):  # fmt: skip
    fraction_bits: tl.constexpr = 31 - bits
    octet = tl.program_id(0).to(tl.int64) * octets + tl.arange(0, octets)
    j = tl.arange(0, 8)[None, :]
    place = octet[:, None] * 8 + j
    inside = place < count
    block = place // size
    value = tl.load(x + place, mask=inside, other=0).to(wide)
    half_low = tl.load(scales + 2 * block, mask=inside, other=0).to(wide) * 0.5
    half = tl.load(scales + 2 * block + 1, mask=inside, other=1).to(wide)
    position = _divided(value * 0.5 - half_low, tl.where(half == 0, 1.0, half).to(wide))
    word_of_key = tl.load(key).to(tl.uint64)
    at = position * (1 << fraction_bits)
    if near > 0:
        at += tl.where(at < near, part(word_of_key, block, size, wide), 0.0).to(wide)
    fixed = at.to(tl.int32)
    drawn = uniform(word_of_key, block, place % size, size, fraction_bits)
    code = tl.minimum(((fixed + drawn) >> fraction_bits) & 255, steps)
    if zero_code:
        code = tl.where(value != 0, code + 1, 0)
    code = tl.where(inside, code, 0)
    packed = tl.sum(code.to(tl.int64) << (j * bits).to(tl.int64), 1)
    there = octet * 8 < count
    tl.store(low_plane + octet, packed.to(low_plane.dtype.element_ty), mask=there)
    if bits == 3:
        tl.store(high_plane + octet, (packed >> 16).to(tl.uint8), mask=there)


@triton.jit
def read(
    low_plane, high_plane, scales, word_of_key, place, inside, size,
    bits: tl.constexpr, dithered: tl.constexpr, zero_code: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """The estimates at those places, of the type `wide`; those not `inside` mean nothing."""
    fraction_bits: tl.constexpr = 31 - bits
    packed = tl.load(low_plane + place // 8, mask=inside, other=0).to(tl.int64)
    if bits == 3:
        high = tl.load(high_plane + place // 8, mask=inside, other=0).to(tl.int64)
        packed = (packed & 0xFFFF) | (high << 16)
    code = ((packed >> (place % 8 * bits)) & ((1 << bits) - 1)).to(tl.int32)
    block = place // size
    half_low = tl.load(scales + 2 * block, mask=inside, other=0).to(wide) * 0.5
    half = tl.load(scales + 2 * block + 1, mask=inside, other=0).to(wide)
    level = (code - 1) if zero_code else code
    if dithered:
        drawn = uniform(word_of_key, block, place % size, size, fraction_bits)
        fixed = (level << fraction_bits) - drawn + (1 << (fraction_bits - 1))
        at = fixed.to(wide)
        if wide == tl.float64:
            at -= 0.5
        at = at * (1.0 / (1 << fraction_bits))
    else:
        at = level.to(wide)
    value = (at * half + half_low) * 2
    if zero_code:
        value = tl.where(code == 0, 0.0, value).to(wide)
    return value


@triton.jit
def _decode(
    low_plane, high_plane, scales, key, out, start, stop, size,
    bits: tl.constexpr, dithered: tl.constexpr, zero_code: tl.constexpr, wide: tl.constexpr,
    tile: tl.constexpr,
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = offset < stop - start
    value = read(
        low_plane, high_plane, scales, tl.load(key).to(tl.uint64), start + offset, inside, size,
        bits, dithered, zero_code, wide,
    )  # fmt: skip
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside)


def compress(x: Tensor, key: Tensor, to: Blocks, near: float) -> tuple[Tensor, ...]:
    """What `Rounding.compress` keeps of x. Any device that Triton runs on, here and below.

    `near` is that of `rad.sketches.grid`, 0 for nowhere.
    """
    x = x.detach().contiguous()
    count, size = x.numel(), to.size
    blocks, groups = triton.cdiv(count, size), triton.cdiv(count, 8)
    planes = [torch.empty(groups, dtype=t, device=x.device) for t in PLANES[to.bits]]
    scales = torch.empty(blocks, 2, dtype=scale_dtype(x.dtype), device=x.device)
    if count:
        wide = wide_type(x.dtype)
        tile = min(TILE, triton.next_power_of_2(size))
        with torch.cuda.device_of(x):
            _fit[(blocks,)](
                x, scales, count, size, to.steps,
                skip_zeros=to.zero_code, wide=wide, tile=tile, **EXACTLY,
            )  # fmt: skip
            _encode[(triton.cdiv(groups, OCTETS),)](
                x, scales, key, planes[0], planes[-1], count, size, to.steps,
                bits=to.bits, zero_code=to.zero_code, near=near, wide=wide, octets=OCTETS,
                **EXACTLY,
            )  # fmt: skip
    return *planes, scales


def decompress(
    saved: tuple[Tensor, ...],
    places: range,
    of: Blocks,
    dtype: torch.dtype,
    key: Tensor,
) -> Tensor:
    """The estimate at those places of the flattened tensor: (len(places),)."""
    *planes, scales = saved
    out = torch.empty(len(places), dtype=dtype, device=scales.device)
    if len(places):
        with torch.cuda.device_of(scales):
            _decode[(triton.cdiv(len(places), TILE),)](
                planes[0], planes[-1], scales, key, out, places.start, places.stop,
                of.size, bits=of.bits, dithered=of.dithered, zero_code=of.zero_code,
                wide=wide_type(dtype), tile=TILE, **EXACTLY,
            )  # fmt: skip
    return out
