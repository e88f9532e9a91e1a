"""Rounding by compiled loops: what `Rounding` hands to them, and when.

The loops take float32 and float64 on the CPU; the results are those of the torch operators in
`rad.sketches.blockwise`, to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rad import backends
from rad.backends import Keys
from rad.dtypes import LOOP_DTYPES
from rad.packing.codes import PLANES, Blocks, masks
from rad.packing.pieces import pieces
from rad.sketches.contraction import PIECE_BYTES, SMALL_BYTES

LIKE: dict[torch.dtype, tuple[np.floating[Any], np.signedinteger[Any]]] = {
    torch.float32: (np.float32(0), np.int32(0)),
    torch.float64: (np.float64(0), np.int64(0)),
}
"""Zero of each type that loops take, and of the integers of its size."""


def contracts(left: Tensor, saved: tuple[Tensor, ...], d: int, key: Tensor) -> bool:
    """Whether `contract` takes them: half of x_hat is not large, and no derivative is wanted."""
    if len(left) * d * left.dtype.itemsize > 2 * PIECE_BYTES:
        return False
    constant = not (left.requires_grad and torch.is_grad_enabled())
    return constant and backends.in_loops(left) and takes(saved[-1], left.dtype, key)


def takes(values: Tensor, dtype: torch.dtype, key: Tensor) -> bool:
    """Whether loops round those values, or read them as that type."""
    return dtype in LOOP_DTYPES and backends.in_loops(values) and backends.in_loops(key)


def compress(
    x: Tensor,
    lead: tuple[int, ...],
    blocks: Blocks,
    key: Tensor,
    first: int,
    limit: float | None,
    given: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The planes (*lead, groups) and grids (*lead, blocks, 2) of x: sequences of equal length.

    `lead` is () for one sequence, (g,) for g of them. All of their blocks are numbered in order,
    from `first` on; `key` may hold one key a block. Grids are fitted unless they are `given`.
    """
    from rad.sketches import rounding_passes

    x = x if x.is_contiguous() else x.detach().contiguous()
    sequences = lead[0] if lead else 1
    count = x.numel() // max(1, sequences)
    low, *others = (
        torch.empty(*lead, -(-count // 8), dtype=dtype) for dtype in PLANES[blocks.bits]
    )
    key = key.contiguous()
    shape = (*lead, -(-count // blocks.size), 2)
    scales = torch.empty(shape, dtype=x.dtype) if given is None else given.view(shape)
    rounding_passes.compress(
        x.data_ptr(), sequences, count, blocks.size, key.data_ptr(), key.numel(), first,
        blocks.bits, blocks.steps, blocks.zero_code, limit or 0.0, masks(blocks.bits),
        low.data_ptr(), others[0].data_ptr() if others else 0, scales.data_ptr(),
        given is not None,
        *LIKE[x.dtype],
    )  # fmt: skip
    return low, *others, scales


class Runs(NamedTuple):
    """Numbers of a sequence: `runs` of `length` each, which begin `stride` apart."""

    first: int
    length: int
    runs: int = 1
    stride: int = 0

    @property
    def stop(self) -> int:
        """The number after the last."""
        return self.first + (self.runs - 1) * self.stride + self.length


def decompress(
    saved: tuple[Tensor, ...],
    sequences: int,
    count: int,
    wanted: Runs,
    blocks: Blocks,
    dtype: torch.dtype,
    key: Tensor,
) -> Tensor:
    """What `compress` kept of sequences of `count` numbers, of each those `wanted`: in order, flat.

    Their blocks are numbered from 0 on; `dtype` is one of LOOP_DTYPES.
    """
    from rad.sketches import rounding_passes

    low, high, scales = saved[0].contiguous(), saved[-2].contiguous(), saved[-1]
    assert low.numel() == high.numel() == sequences * -(-count // 8)
    assert scales.numel() == 2 * sequences * -(-count // blocks.size)
    skipped = 0
    if scales.dtype != dtype and sequences == 1:
        skipped = wanted.first // blocks.size
        scales = scales.view(-1, 2)[skipped : -(-wanted.stop // blocks.size)]
    scales, key = scales.to(dtype).contiguous(), key.contiguous()
    x_hat = torch.empty(sequences * wanted.runs * wanted.length, dtype=dtype)
    rounding_passes.decompress(
        low.data_ptr(), high.data_ptr(), scales.data_ptr(), skipped, sequences, count,
        *wanted, blocks.size, key.data_ptr(), key.numel(), 0, blocks.bits, blocks.dithered,
        blocks.zero_code, masks(blocks.bits), x_hat.data_ptr(), LIKE[dtype][0],
    )  # fmt: skip
    return x_hat


def contract(
    left: Tensor, saved: tuple[Tensor, ...], shape: tuple[int, ...], blocks: Blocks, key: Tensor
) -> Tensor:
    """left^T x_hat for left (rows, m) and what was kept of x (rows, d): (m, d).

    All columns at once where x_hat is small, else half of them: unlike rows, columns need not be
    added up.
    """
    rows, d = shape
    row_bytes = d * left.dtype.itemsize
    width = d if rows * row_bytes <= SMALL_BYTES else -(-d // 2)
    if width == d:
        x_hat = decompress(saved, 1, rows * d, Runs(0, rows * d), blocks, left.dtype, key)
        return left.t() @ x_hat.view(rows, d)
    total = left.new_empty(left.shape[1], d)
    for piece in pieces(range(d), width):
        wanted = Runs(piece.start, len(piece), rows, d)
        x_hat = decompress(saved, 1, rows * d, wanted, blocks, left.dtype, key)
        product = total[:, piece.start : piece.stop]
        torch.mm(left.t(), x_hat.view(rows, len(piece)), out=product)
        del x_hat  # before the next one is read
    return total


def round_blocks(
    x: Tensor, scales: Tensor, keys: Keys, first: int, blocks: Blocks, limit: float | None
) -> Tensor:
    """`Rounding.round`."""
    from rad.sketches import rounding_loops

    codes = torch.empty(x.shape, dtype=torch.uint8)
    values, grids = x.contiguous().numpy(), scales.to(x.dtype).numpy()
    how = (31 - blocks.bits, blocks.steps, blocks.zero_code, limit or 0.0)
    rounding_loops.round_blocks(values, grids, keys, first, *how, codes.numpy())
    return codes


def read_blocks(
    codes: Tensor, scales: Tensor, dtype: torch.dtype, keys: Keys, first: int, blocks: Blocks
) -> Tensor:
    """`Rounding.read`."""
    from rad.sketches import rounding_loops

    x_hat = torch.empty(codes.shape, dtype=dtype)
    levels, grids = codes.contiguous().numpy(), scales.to(dtype).numpy()
    how = (31 - blocks.bits, blocks.dithered, blocks.zero_code)
    rounding_loops.read_blocks(levels, grids, keys, first, *how, x_hat.numpy())
    return x_hat
