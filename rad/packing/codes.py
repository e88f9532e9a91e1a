"""Codes of 1, 2, 3, 4 or 8 bits, packed without gaps in groups of eight.

Eight codes, one a byte, are read as one 64-bit integer. Three steps move neighbours
together, to pairs, to fours, to eight, which leaves 8 b bits: the group's b bytes.
They are kept as integers of that size, those of 3 bits as one of two bytes and one of
one byte (little-endian machines, which all supported ones are).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rad import backends

PLANES: dict[int, tuple[torch.dtype, ...]] = {
    1: (torch.uint8,),
    2: (torch.int16,),
    3: (torch.int16, torch.uint8),
    4: (torch.int32,),
    8: (torch.int64,),
}
"""Bits of a code -> the integer types of what is kept of a group, low bits first."""


class Blocks(NamedTuple):
    """How numbers are kept as codes, block by block: what compiled forms of rounding take."""

    bits: int
    size: int  # numbers in a block
    steps: int  # from a block's lowest level to its highest
    dithered: bool
    zero_code: bool  # code 0 is an exact zero


class _Reinterpret(torch.autograd.Function):
    """`Tensor.view(dtype)`, which torch.vmap has no rule for."""

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.view(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
        return x.movedim(in_dims[0], 0).contiguous().view(dtype), 0


def reinterpret(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes of integers x (..., n) read as another integer type: (..., n * its ratio)."""
    try:
        return x.view(dtype)
    except RuntimeError:  # under torch.vmap, where a Function's own rule must do it
        result: Tensor = _Reinterpret.apply(x, dtype)
        return result


def code_bytes(count: int, bits: int) -> int:
    """Bytes that `pack_codes` keeps of `count` codes."""
    return -(-count // 8) * bits


def pack_codes(codes: Tensor, bits: int) -> tuple[Tensor, ...]:
    """uint8 codes (..., n) below 2**bits as integers (..., ceil(n / 8)): one tensor a plane."""
    missing = -codes.shape[-1] % 8
    if missing:
        codes = torch.cat([codes, codes.new_zeros(*codes.shape[:-1], missing)], -1)
    word = reinterpret(codes.flatten(), torch.int64).view(*codes.shape[:-1], -1)
    if bits == 8:
        return (word,)
    if backends.in_loops(word):
        return _pack_in_loops(word, bits)
    for fields in (1, 2, 4):
        word = (word >> fields * (8 - bits)).bitwise_or_(word)
        word &= _mask(2 * fields * bits, 16 * fields)
    first, *rest = PLANES[bits]
    return word.to(first), *((word >> 16).to(dtype) for dtype in rest)


def unpack_codes(planes: tuple[Tensor, ...], bits: int) -> Tensor:
    """The uint8 codes (..., 8 * groups) which `pack_codes` packed, with those that filled it up."""
    if bits < 8 and backends.in_loops(planes[0]):
        return _unpack_in_loops(planes, bits).view(torch.uint8)
    word = planes[0].to(torch.int64)
    if bits < 8:
        word = word & _mask(8 * planes[0].element_size(), 64)
        for plane in planes[1:]:
            word |= plane.to(torch.int64) << 16
        for fields in (4, 2, 1):
            word |= word << fields * (8 - bits)
            word &= _mask(fields * bits, 8 * fields)
    return reinterpret(word, torch.uint8)


def _pack_in_loops(word: Tensor, bits: int) -> tuple[Tensor, ...]:
    from rad.packing.loops import pack_groups

    planes = tuple(torch.empty(word.shape, dtype=dtype) for dtype in PLANES[bits])
    flat = [plane.numpy().reshape(-1) for plane in planes]
    pack_groups(word.numpy().view(np.uint64).reshape(-1), bits, masks(bits)[:3], flat[0], flat[-1])
    return planes


def _unpack_in_loops(planes: tuple[Tensor, ...], bits: int) -> Tensor:
    from rad.packing.loops import unpack_groups

    word = torch.empty(planes[0].shape, dtype=torch.int64)
    flat = [plane.numpy().reshape(-1) for plane in planes]
    flat = [plane.view(f"u{plane.itemsize}") for plane in flat]
    groups = word.numpy().view(np.uint64).reshape(-1)
    unpack_groups(flat[0], flat[-1], bits, masks(bits)[3:], groups)
    return word


@lru_cache
def masks(bits: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The masks of the three steps of packing, then of the three of unpacking."""
    packing = [_mask(2 * fields * bits, 16 * fields) for fields in (1, 2, 4)]
    unpacking = [_mask(fields * bits, 8 * fields) for fields in (4, 2, 1)]
    return np.array(packing + unpacking, np.int64).view(np.uint64)


def _mask(width: int, every: int) -> int:
    """The 64-bit integer whose low `width` bits of every `every` are set, as a signed one."""
    word = sum(((1 << width) - 1) << start for start in range(0, 64, every))
    return word - (1 << 64) if word >> 63 else word
