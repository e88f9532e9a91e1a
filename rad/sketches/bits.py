"""Eight booleans a byte.

Eight boolean bytes are read as one 64-bit integer and gathered into a byte by one
multiplication; unpacking spreads a byte over eight by the reverse. Bit j of byte i
is element 8 i + j (little-endian machines, which all supported ones are).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_ONE_BIT_EACH = 0x8040201008040201 - (1 << 64)
_CARRY = 0x7F7F7F7F7F7F7F7F


def packed_bytes(count: int) -> int:
    """Bytes that `pack` keeps of `count` booleans."""
    return -(-count // 8)


def pack(mask: Tensor) -> Tensor:
    """A bool tensor of any shape as uint8 of shape (ceil(numel / 8),)."""
    flat = mask.reshape(-1)
    missing = -flat.numel() % 8
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return ((flat.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of that shape which `pack` packed."""
    spread = packed.to(torch.int64).mul_(_SPREAD).bitwise_and_(_ONE_BIT_EACH)
    spread.add_(_CARRY).bitwise_right_shift_(7).bitwise_and_(_SPREAD)
    return spread.view(torch.bool)[: shape.numel()].view(shape)
