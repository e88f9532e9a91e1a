"""What attention keeps of a mask that is trained, and the gradient by it.

A mask that is added to the scores has their gradient, grad_S of `rad.functional.attention`, summed
along the axes along which it broadcasts. Where probabilities are kept, that asks for nothing of the
mask but which of its numbers are minus infinity: 1 bit each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rad.backends.operators import opaque
from rad.draws.casts import cast
from rad.draws.reference import READ
from rad.functional.attention_tiles import Sizes, Strip, Tile, mask_of
from rad.packing.bits import pack, packed_bytes, unpack


@opaque()
def attention_seen_bits(mask: Tensor) -> Tensor:
    """Of an added mask, which numbers are not minus infinity: packed."""
    return pack(mask != -math.inf)


@opaque()
def attention_seen(bits: Tensor, shape: list[int]) -> Tensor:
    """The mask of bool that stands for the `attention_seen_bits` of a mask of that shape."""
    return unpack(bits, torch.Size(shape))


def mask_bytes(mask: Tensor | None) -> tuple[int, int]:
    """The bytes kept of a mask beside probabilities, and beside inputs: of one that is trained."""
    if mask is None or not mask.requires_grad:
        return 0, 0
    return packed_bytes(mask.numel()), mask.numel() * mask.element_size()


def add_gradient(total: Tensor, by_scores: Tensor, tile: Tile, strip: Strip, sizes: Sizes) -> None:
    """Add the gradient by the scores of a strip (b, h, l, s) to that by the mask, of its shape."""
    part = mask_of(total, tile, strip, sizes)
    part += by_scores.sum_to_size(part.shape)


def in_type(total: Tensor, dtype: torch.dtype, key: Tensor) -> Tensor:
    """The gradient by a mask, in its type."""
    rows = total.view(-1, total.shape[-1])
    return cast(rows, dtype, key, READ, range(len(rows))).view(total.shape)
