"""Unbiased rounding to a few bits: every number is kept, none of them exactly.

At equal bytes this has far less variance than sampling: 3 bits a number are a tenth of
float32. Compare ActNN (Chen et al., ICML 2021) for stochastic rounding of activations,
and Schuchman (1964) for subtractive dither.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rad import backends
from rad.draws.casts import cast
from rad.draws.dispatch import row_keys
from rad.draws.reference import READ
from rad.dtypes import LOOP_DTYPES, accumulation_dtype, scale_dtype
from rad.errors import UsageError
from rad.packing.codes import PLANES, Blocks, code_bytes, pack_codes, unpack_codes
from rad.sketches import compiled_rounding
from rad.sketches.base import Shape, Sketch
from rad.sketches.grid import fit, near, part, place, positions, squared_step, uniform
from rad.sketches.noise import Noise, Numbers

BLOCKS = (None, 256, 1024, 4096)
"""Blocks to choose among: rows first, then what costs less than short rows do."""

PIECE = 1 << 16
"""Numbers rounded at a time: few enough for the temporary tensors to stay in a core's cache."""


@dataclass(frozen=True)
class Rounding(Sketch):
    """What stochastic and dithered rounding share: blocks, grids, codes and bytes.

    `bits` a number: 1, 2, 3, 4 or 8. Each block of `block` consecutive numbers of the
    flattened tensor (None: each row) has a grid of 2**bits levels from its smallest to
    its largest value (`rad.sketches.grid`). With `zero_code` one code is reserved for
    exact zeros and the others span the block's other values: zeros stay exact, and
    `active` tells them apart, at one level fewer.

    A NaN or an infinity makes all numbers of its block NaN or infinite, neighbours in other
    rows too where a block spans them; zeros with `zero_code` stay. Other blocks do not see it.

    Kept: `bits` bytes for each eight numbers begun, and two numbers a block, in the type
    of x (float32 for float16). Raises UsageError for other bits, an empty block, and
    `zero_code` with 1 bit.
    """

    bits: int
    block: int | None = None
    zero_code: bool = False
    dithered: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in PLANES:
            raise UsageError(f"bits is {self.bits!r}: choose one of {', '.join(map(str, PLANES))}")
        if self.block is not None and (not isinstance(self.block, int) or self.block < 1):
            raise UsageError(f"block is {self.block!r}: give a whole number of at least 1, or None")
        if self.zero_code and self.bits == 1:
            raise UsageError("zero_code leaves 1 bit a single level: give at least 2 bits")

    @property
    def steps(self) -> int:
        """Steps from a block's lowest level to its highest."""
        return (1 << self.bits) - (2 if self.zero_code else 1)

    @property
    def fraction_bits(self) -> int:
        """Positions on the grid are resolved to 2**-fraction_bits of a step."""
        return 31 - self.bits

    def block_size(self, d: int) -> int:
        """Numbers in a block of a tensor whose last axis is d."""
        return max(1, d) if self.block is None else self.block

    def blocks(self, d: int) -> Blocks:
        """The blocks of a tensor whose last axis is d, as kernels take them."""
        return Blocks(self.bits, self.block_size(d), self.steps, self.dithered, self.zero_code)

    def fit(self, x: Tensor) -> Tensor:
        """The grid of each block: x (m, n) -> (m, 2)."""
        return fit(x, self.steps, skip_zeros=self.zero_code)

    def round(self, x: Tensor, scales: Tensor, key: Tensor, rows: range) -> Tensor:
        """The codes of x (m, n) on those grids, the blocks being `rows`: uint8, (m, n).

        floor(position + u) with u uniform on [0, 1): up with the probability of the
        fraction. `key` may also hold one key a block.
        """
        keys = backends.host_keys(key)
        if keys is not None and x.dtype in LOOP_DTYPES and backends.in_loops(x):
            limit = near(x.dtype, dithered=self.dithered)
            how = self.blocks(x.shape[1])
            return compiled_rounding.round_blocks(x, scales, keys, rows.start, how, limit)
        at = positions(x, scales).mul_(1 << self.fraction_bits)
        limit = near(x.dtype, dithered=self.dithered)
        if limit is not None:
            at = at + torch.where(at < limit, part(key, rows, x.shape[1], at.dtype), 0)
        fixed = at.to(torch.int32)
        fixed = uniform(key, rows, x.shape[1], self.fraction_bits).add_(fixed)
        codes = (fixed >> self.fraction_bits).to(torch.uint8).clamp_(max=self.steps)
        return codes.add_(1).mul_(x != 0) if self.zero_code else codes

    def read(
        self, codes: Tensor, scales: Tensor, dtype: torch.dtype, key: Tensor, rows: range
    ) -> Tensor:
        """The estimate that those codes (m, n) stand for: (m, n), of that dtype."""
        keys = backends.host_keys(key)
        if keys is not None and dtype in LOOP_DTYPES and backends.in_loops(codes):
            how = self.blocks(codes.shape[1])
            return compiled_rounding.read_blocks(codes, scales, dtype, keys, rows.start, how)
        level = codes - 1 if self.zero_code else codes
        x_hat = place(self._position(level, dtype, key, rows), scales)
        return x_hat.masked_fill_(codes == 0, 0) if self.zero_code else x_hat

    @abstractmethod
    def _position(self, level: Tensor, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        """The position on the grid that is read from a level: (m, n), new."""

    @abstractmethod
    def _noise(self, x: Tensor, scales: Tensor) -> Tensor:
        """E (x_hat - x)^2 of each number of x (m, n), in steps^2; zeros aside."""

    def variance_on(self, x: Tensor, scales: Tensor) -> Tensor:
        """E (x_hat - x)^2 of each number of x (m, n) on those grids: (m, n)."""
        noise = self._noise(x, scales) * squared_step(scales, accumulation_dtype(x.dtype))
        return noise.where(x != 0, 0) if self.zero_code else noise

    def element_variance(self, x: Tensor) -> Tensor:
        """E (x_hat - x)^2 of each number of x (..., d); their errors are uncorrelated: (..., d)."""
        x = x.detach()
        blocks = self._blocks(x.reshape(1, -1), self.block_size(x.shape[-1])).flatten(0, 1)
        return self.variance_on(blocks, self.fit(blocks)).flatten()[: x.numel()].view(x.shape)

    def variance(self, x: Tensor) -> Tensor:
        return self.element_variance(x).sum()

    def noise(self, d: int) -> tuple[Noise, ...]:
        return (Numbers(self),)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        count = torch.Size(shape).numel()
        blocks = -(-count // self.block_size(shape[-1]))
        return code_bytes(count, self.bits) + 2 * blocks * scale_dtype(dtype).itemsize

    def in_kernels(self, values: Tensor, key: Tensor) -> bool:
        """Whether kernels round those values, or read what was kept."""
        return key.dim() == 0 and backends.use_kernels(values, key)

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        if compiled_rounding.takes(x, x.dtype, key):
            how, limit = self.blocks(x.shape[-1]), near(x.dtype, dithered=self.dithered)
            return compiled_rounding.compress(x, (), how, key, 0, limit)
        if self.in_kernels(x, key):
            from rad.kernels.rounding import compress

            limit = near(x.dtype, dithered=self.dithered)
            return compress(x, key, self.blocks(x.shape[-1]), limit or 0.0)
        flat = x.detach().reshape(-1)
        return self.compress_parts(lambda part: flat[part], x.shape, key)

    def compress_parts(
        self,
        read: Callable[[slice], Tensor],
        shape: Shape,
        key: Tensor,
        piece: int = PIECE,
        row: int = 1,
    ) -> tuple[Tensor, ...]:
        """`compress` of a tensor of that shape, of which only a part need stand in memory.

        `read` gives parts of the flattened tensor, in order, of some `piece` numbers; they
        start at multiples of `row`.
        """
        numbers = torch.Size(shape).numel()
        size = self.block_size(shape[-1])
        count = -(-numbers // size)
        whole = math.lcm(8, size, row) // size  # blocks that fill whole groups of codes, and rows
        step = max(1, piece // (whole * size)) * whole
        kept = [
            self.encode(part[None], size, key, range(first, last))
            for first in range(0, max(count, 1), step)
            for last in [min(first + step, count)]
            for part in [read(slice(first * size, min(last * size, numbers)))]
        ]
        if len(kept) == 1:
            return tuple(part[0] for part in kept[0])
        return tuple(torch.cat(parts, 1)[0] for parts in zip(*kept, strict=True))

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        *planes, scales = saved
        d, count = shape[-1], torch.Size(shape).numel()
        size = self.block_size(d)
        start, stop = (0, count) if rows is None else (rows.start * d, rows.stop * d)
        wanted = shape if rows is None else (len(rows), d)
        wide = accumulation_dtype(dtype)
        if compiled_rounding.takes(scales, wide, key):
            runs = compiled_rounding.Runs(start, stop - start)
            x_hat = compiled_rounding.decompress(
                saved, 1, count, runs, self.blocks(d), wide, key
            ).view(wanted)
            return x_hat if dtype == wide else cast(x_hat, dtype, key, READ, rows)
        if self.in_kernels(scales, key):
            from rad.kernels.rounding import decompress

            x_hat = decompress(saved, range(start, stop), self.blocks(d), wide, key)
            return cast(x_hat.view(wanted), dtype, key, READ, rows)
        blocks = range(start // size, -(-stop // size))
        first, last = blocks.start * size, min(blocks.stop * size, count)
        parts = [plane[None, first // 8 : -(-last // 8)] for plane in planes]
        x_hat = self.decode(
            (*parts, scales[None, blocks.start : blocks.stop]),
            range(first % 8, first % 8 + last - first),
            size,
            wide,
            key,
            blocks,
        )
        x_hat = x_hat[0, start - first : stop - first].view(wanted)
        return cast(x_hat, dtype, key, READ, rows)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        if compiled_rounding.contracts(left, saved, shape[1], key):
            return compiled_rounding.contract(left, saved, shape, self.blocks(shape[1]), key)
        if self.in_kernels(saved[-1], key) and saved[-1].dtype != torch.float64:
            from rad.kernels import weight_grad as kernel

            if kernel.rounded_pays(left, shape[1]):
                return kernel.rounded(left, saved, key, shape[1], self.blocks(shape[1]))
        return super().contract(left, saved, shape, key)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        flat, size = x.detach().flatten(1), self.block_size(x.shape[2])
        each = -(-flat.shape[1] // size)
        return self.encode(flat, size, row_keys(keys, each), range(len(x) * each))

    def decompress_steps(
        self, saved: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype, keys: Tensor
    ) -> Tensor:
        steps, rows, d = shape
        each = saved[-1].shape[1]  # grids of a step
        of_blocks, blocks = row_keys(keys, each), range(len(keys) * each)
        numbers, size = range(rows * d), self.block_size(d)
        if compiled_rounding.takes(saved[-1], dtype, of_blocks):
            count, runs = len(numbers), compiled_rounding.Runs(0, len(numbers))
            read = compiled_rounding.decompress(
                saved, steps, count, runs, self.blocks(d), dtype, of_blocks
            )
            return read.view(shape)
        return self.decode(saved, numbers, size, dtype, of_blocks, blocks).reshape(shape)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        x_hat = self.decompress_steps(saved, shape, left.dtype, keys)
        return x_hat.flatten(0, 1).t() @ left.flatten(0, 1)

    def active(self, saved: tuple[Tensor, ...], shape: Shape) -> Tensor:
        """Which numbers are not exactly zero, from the codes alone: bool, of that shape.

        For operators of one's own, which then need no mask beside the codes; `rad.nn.ReLU` keeps
        its own. A NaN counts as active, as in torch. Raises UsageError without `zero_code`: another
        grid may round a positive number to 0.
        """
        if not self.zero_code:
            raise UsageError("these codes do not tell zeros: give the sketch zero_code=True")
        codes = unpack_codes(saved[:-1], self.bits)
        return (codes[: torch.Size(shape).numel()] != 0).view(shape)

    def encode(self, x: Tensor, size: int, key: Tensor, blocks: range) -> tuple[Tensor, ...]:
        """The codes and grids of x (g, n), each of g sequences cut into blocks of that size.

        Planes (g, ceil(n / 8)) and scales (g, ceil(n / size), 2). `blocks` numbers all
        blocks in order; `key` may also hold one key a block.
        """
        if compiled_rounding.takes(x, x.dtype, key):
            how, limit = self.blocks(size), near(x.dtype, dithered=self.dithered)
            return compiled_rounding.compress(x, (len(x),), how, key, blocks.start, limit)
        cut = self._blocks(x, size)
        flat = cut.flatten(0, 1)
        scales = self.fit(flat)
        codes = self.round(flat, scales, key, blocks).view(len(x), cut.shape[1] * size)
        if codes.shape[1] > x.shape[1]:
            codes = codes[:, : x.shape[1]].clone()  # eight bits are kept as they are: no filling
        return *pack_codes(codes, self.bits), scales.view(*cut.shape[:2], 2)

    def decode(
        self,
        saved: tuple[Tensor, ...],
        wanted: range,
        size: int,
        dtype: torch.dtype,
        key: Tensor,
        blocks: range,
    ) -> Tensor:
        """The estimate (g, len(wanted)) of what `encode` kept, from those of its codes.

        `dtype` is float32 at least.
        """
        *planes, scales = saved
        codes = unpack_codes(tuple(planes), self.bits)[:, wanted.start : wanted.stop]
        cut = self._blocks(codes, size).flatten(0, 1)
        x_hat = self.read(cut, scales.flatten(0, 1), dtype, key, blocks)
        return x_hat.view(len(codes), -1)[:, : len(wanted)]

    @staticmethod
    def _blocks(x: Tensor, size: int) -> Tensor:
        """x (g, n) as blocks (g, ceil(n / size), size); its last number fills up the last one."""
        missing = -x.shape[1] % size
        if missing:
            x = torch.cat([x, x[:, -1:].expand(-1, missing)], 1)
        return x.unflatten(1, (x.shape[1] // size, size))
