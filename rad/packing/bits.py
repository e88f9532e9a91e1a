"""Eight booleans a byte.

Eight boolean bytes are read as one 64-bit integer and gathered into a byte by one
multiplication; unpacking spreads a byte over eight by the reverse. Bit j of byte i
is element 8 i + j (little-endian machines, which all supported ones are).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad import backends

_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_ONE_BIT_EACH = 0x8040201008040201 - (1 << 64)
_CARRY = 0x7F7F7F7F7F7F7F7F

PIECE = 1 << 20
"""Numbers packed or unpacked at a time, a multiple of 8: no tensor of bytes stands whole."""

_WIDE = {16: torch.int16, 32: torch.int32, 64: torch.int64}
"""What integers of whole bytes are packed into, by their bits."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Numbers that compiled loops take as integers of their size."""


def packed_bytes(count: int) -> int:
    """Bytes that `pack` keeps of `count` booleans."""
    return -(-count // 8)


def pack(mask: Tensor) -> Tensor:
    """A bool tensor of any shape as uint8 of shape (ceil(numel / 8),); of numbers, if not zero."""
    flat = (mask if mask.is_contiguous() else mask.bool()).reshape(-1)
    if (flat.dtype == torch.bool or flat.dtype in FLOATS) and backends.in_loops(flat):
        return _pack_in_loops(flat)
    if flat.numel() <= PIECE:
        return _pack(flat.bool())
    packed = flat.new_empty(packed_bytes(flat.numel()), dtype=torch.uint8)
    for numbers, octets in _pieces(flat.numel()):
        packed[octets] = _pack(flat[numbers].bool())
    return packed


def unpack(packed: Tensor, shape: torch.Size, dtype: torch.dtype = torch.bool) -> Tensor:
    """The bool tensor of that shape which `pack` packed, or the same as 0 and 1 of that dtype."""
    count = shape.numel()
    loops_know = dtype == torch.bool or dtype in FLOATS
    if loops_know and len(packed) >= packed_bytes(count) and backends.in_loops(packed):
        return _unpack_in_loops(packed, shape, dtype)
    if count <= PIECE:
        bits = _unpack(packed)[:count].view(shape)
        # Bytes are converted faster than booleans.
        return bits if dtype == torch.bool else bits.view(torch.uint8).to(dtype)
    mask = packed.new_empty(count, dtype=dtype)
    for numbers, octets in _pieces(count):
        part = mask[numbers]
        part.copy_(_unpack(packed[octets])[: len(part)].view(torch.uint8))
    return mask.view(shape)


def _pack_in_loops(flat: Tensor) -> Tensor:
    from rad.packing.bit_loops import pack_numbers

    flat, packed = flat.contiguous(), torch.empty(packed_bytes(flat.numel()), dtype=torch.uint8)
    pack_numbers(flat.data_ptr(), packed.data_ptr(), flat.numel(), _magnitude(flat.dtype))
    return packed


def _unpack_in_loops(packed: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    from rad.packing.bit_loops import unpack_numbers

    mask = torch.empty(shape, dtype=dtype)
    bits = packed.contiguous()
    unpack_numbers(bits.data_ptr(), mask.data_ptr(), mask.numel(), bits_of(1.0, dtype))
    return mask


@cache
def bits_of(value: float, dtype: torch.dtype) -> np.signedinteger[Any]:
    """The bits of a number of that type (one of FLOATS, or bool), as loops take them."""
    size = f"int{8 * dtype.itemsize}"
    bits = torch.tensor([value]).to(dtype).view(getattr(torch, size))
    return getattr(np, size)(bits.item())


def number_of(value: float, dtype: torch.dtype) -> np.floating[Any]:
    """A number as one of numpy's of that type (float32 or float64), as loops take it."""
    return np.float32(value) if dtype == torch.float32 else np.float64(value)


@cache
def _magnitude(dtype: torch.dtype) -> np.signedinteger[Any]:
    """The bits that tell a number from zero: all but the sign."""
    return ~bits_of(-0.0, dtype) if dtype != torch.bool else np.int8(-1)


def _pieces(count: int) -> Iterator[tuple[slice, slice]]:
    """Numbers, and the bytes that hold their bits, a piece at a time."""
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        yield slice(start, stop), slice(start // 8, packed_bytes(stop))


def _pack(flat: Tensor) -> Tensor:
    missing = -flat.numel() % 8
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def _unpack(packed: Tensor) -> Tensor:
    spread = packed.to(torch.int64).mul_(_SPREAD).bitwise_and_(_ONE_BIT_EACH)
    spread.add_(_CARRY).bitwise_right_shift_(7).bitwise_and_(_SPREAD)
    return spread.view(torch.bool)


def packed_width(values: int) -> int:
    """Bits that an integer below `values` takes when packed: 1, 2, 4, 8 or 16.

    Raises ValueError where it does not fit 16.
    """
    needed = max(1, (values - 1).bit_length())
    widths = [width for width in (1, 2, 4, 8, 16) if width >= needed]
    if not widths:
        raise ValueError(f"integers below {values} do not fit 16 bits")
    return widths[0]


def index_width(values: int) -> int:
    """Bits that an index below `values` takes when packed: those of `packed_width`, 32 or 64."""
    if values <= 1 << 16:
        return packed_width(values)
    return 32 if values <= 1 << 31 else 64


def pack_integers(integers: Tensor, width: int) -> Tensor:
    """Non-negative integers of any shape, each in 1, 2, 4, 8, 16, 32 or 64 bits.

    Widths up to 8 give uint8 of shape (ceil(numel * width / 8),), element i in the
    bits from (i % (8 / width)) * width of its byte; 16 gives int16 with the low 16 bits, 32 int32
    and 64 int64. What is packed is no view of the integers.
    """
    flat = integers.reshape(-1)
    if width in _WIDE:
        return flat.to(_WIDE[width], copy=True)
    each = 8 // width
    missing = -flat.numel() % each
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    columns = flat.view(-1, each).to(torch.uint8)
    packed = columns[:, 0].clone(memory_format=torch.contiguous_format)
    for i in range(1, each):
        packed |= columns[:, i] << (i * width)
    return packed


def unpack_integers(packed: Tensor, width: int, shape: torch.Size) -> Tensor:
    """The int64 tensor of that shape which `pack_integers` packed."""
    if width == 16:
        return (packed.to(torch.int64) & 0xFFFF).view(shape)
    if width in _WIDE:
        return packed.to(torch.int64).view(shape)
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    columns = (packed[:, None] >> shifts) & ((1 << width) - 1)
    return columns.view(-1)[: shape.numel()].to(torch.int64).view(shape)
