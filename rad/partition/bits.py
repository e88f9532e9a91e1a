"""Truth values as a bit each: what a ReLU or dropout lets cross, exactly, in an eighth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.packing.bits import pack, packed_bytes, unpack


@dataclass(frozen=True)
class Bits:
    """Keeps truth values exactly; has the methods of a sketch and draws nothing."""

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor]:
        """The packed bits of x, of any shape."""
        return (pack(x),)

    def decompress(
        self, kept: tuple[Tensor, ...], shape: Sequence[int], dtype: torch.dtype, key: Tensor
    ) -> Tensor:
        """The truth values, of that shape."""
        return unpack(kept[0], torch.Size(shape), dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes that are kept of a tensor of that shape."""
        return packed_bytes(math.prod(shape))
