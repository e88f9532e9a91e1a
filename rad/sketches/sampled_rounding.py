"""Sampling and rounding together: fewer bits a number than rounding alone can keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.casts import cast
from rad.draws.dispatch import fold_in, row_keys, step_keys
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype, scale_dtype
from rad.packing.codes import code_bytes, pack_codes, unpack_codes
from rad.sketches import compiled_rounding, sampled_columns
from rad.sketches.base import FRACTIONS, ReducingSketch, Shape, Sketch, rows_of, squared_norm
from rad.sketches.blockwise import PIECE, Rounding
from rad.sketches.grid import near
from rad.sketches.noise import Noise, Numbers
from rad.sketches.registry import register
from rad.sketches.rounding import DitheredRounding, StochasticRounding
from rad.sketches.sampling import DifferentSample

Keys = tuple[Tensor, Tensor]


def _menu() -> Iterator[Sketch]:
    for fraction in FRACTIONS:
        for bits in (1, 2, 4):
            for dithered in (False, True):
                yield SampledRounding(fraction, bits, dithered)


@register(
    "sampled_rounding",
    decides="keep_fraction",
    options=("bits", "dithered"),
    defaults={"bits": 2},
    menu=_menu,
)
@dataclass(frozen=True)
class SampledRounding(ReducingSketch):
    """Columns drawn afresh for every row, without replacement, and rounded without bias.

    Keeps k = int(d * keep_fraction + 0.999) numbers of each row, rounded to `bits` on a
    grid that spans the whole row, so that rounding errors do not depend on which
    columns are drawn; x_hat adds d/k times what is read to the drawn columns. Dithered
    (`DitheredRounding`) or not (`StochasticRounding`). Unbiased, as both draws are and
    are independent. With s_j = E (rounding error of x_j)^2, by the law of total
    variance E|x_hat - x|^2 = (d - k)/k |x|^2 + d/k sum_j s_j. A NaN or an infinity shows in
    all drawn numbers of its row.

    Kept of x (..., d): `bits` bytes for each eight of the k numbers of all rows begun,
    and a grid of two numbers a row, in the type of x (float32 for float16). Raises
    ValueError unless 0 < keep_fraction <= 1, UsageError for bits other than 1, 2, 3, 4, 8.
    """

    bits: int
    dithered: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rounding

    @property
    def sample(self) -> DifferentSample:
        """What draws the columns."""
        return DifferentSample(self.keep_fraction, replacement=False)

    @property
    def rounding(self) -> Rounding:
        """What rounds the numbers drawn."""
        return DitheredRounding(self.bits) if self.dithered else StochasticRounding(self.bits)

    def relative_variance(self, d: int) -> float:
        """That of the sampling alone: (d - k)/k. Rounding adds d/k of `element_variance`."""
        return self.sample.relative_variance(d)

    def element_variance(self, x: Tensor) -> Tensor:
        """The part of E (x_hat - x)^2 that rounding adds, number by number: d/k s_j, (..., d).

        Uncorrelated with what sampling adds, and from number to number.
        """
        d = x.shape[-1]
        return self.rounding.element_variance(x) * (d / self.kept(d))

    def variance(self, x: Tensor) -> Tensor:
        sampling = self.relative_variance(x.shape[-1]) * squared_norm(x)
        return sampling + self.element_variance(x).sum()

    def noise(self, d: int) -> tuple[Noise, ...]:
        return Numbers(self.rounding, d / self.kept(d)), *self.sample.noise(d)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        rows = len(rows_of(shape))
        scales = 2 * rows * scale_dtype(dtype).itemsize
        return code_bytes(rows * self.kept(shape[-1]), self.bits) + scales

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        flat = x.detach().reshape(-1, x.shape[-1])
        step, keys = max(1, PIECE // (8 * max(1, x.shape[-1]))) * 8, self.keys(key)
        kept = [
            self.encode(flat[None, first : first + step], keys, range(first, last))
            for first in range(0, max(len(flat), 1), step)
            for last in [min(first + step, len(flat))]
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
        d, wanted = shape[-1], rows_of(shape) if rows is None else rows
        k, wide = self.kept(d), accumulation_dtype(dtype)
        first, last = wanted.start * k, wanted.stop * k
        if compiled_rounding.takes(scales, wide, key):
            sampling, rounding = self.keys(key)
            count, numbers = len(rows_of(shape)) * k, range(first, last)
            values = self._values(saved, count, numbers, k, wide, rounding)
            x_hat = values.new_empty(len(wanted), d)
            sampled_columns.read(x_hat, values, sampling, wanted.start, distinct=True)
            read = cast(x_hat, dtype, key, READ, wanted)
            return read.view(shape if rows is None else (len(rows), d))
        parts = [plane[None, first // 8 : -(-last // 8)] for plane in planes]
        scales = scales[None, wanted.start : wanted.stop]
        kept = (*parts, scales)
        x_hat = self.decode(kept, first % 8, d, wide, self.keys(key), wanted)
        read = cast(x_hat, dtype, key, READ, wanted)
        return read.view(shape if rows is None else (len(rows), d))

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        rows, d = shape
        if compiled_rounding.contracts(left, saved, d, key):
            (sampling, rounding), k = self.keys(key), self.kept(d)
            values = self._values(saved, rows * k, range(rows * k), k, left.dtype, rounding)
            found = sampled_columns.weight_grad(left, values, sampling, d, distinct=True)
            if found is not None:
                return found
        return super().contract(left, saved, shape, key)

    def _values(
        self,
        saved: tuple[Tensor, ...],
        count: int,
        wanted: range,
        k: int,
        dtype: torch.dtype,
        key: Tensor,
    ) -> Tensor:
        """What those of `count` codes are read as, by compiled loops, k a row: (rows, k)."""
        runs, how = compiled_rounding.Runs(wanted.start, len(wanted)), self.rounding.blocks(k)
        return compiled_rounding.decompress(saved, 1, count, runs, how, dtype, key).view(-1, k)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        rows = x.shape[1]
        sampling, rounding = (row_keys(each, rows) for each in self.keys(keys))
        return self.encode(x.detach(), (sampling, rounding), range(len(x) * rows))

    def decompress_steps(
        self, saved: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype, keys: Tensor
    ) -> Tensor:
        steps, rows, d = shape
        sampling, rounding = (row_keys(each, rows) for each in self.keys(keys))
        of_rows = (sampling, rounding)
        return self.decode(saved, 0, d, dtype, of_rows, range(steps * rows)).view(shape)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        x_hat = self.decompress_steps(saved, shape, left.dtype, keys)
        return x_hat.flatten(0, 1).t() @ left.flatten(0, 1)

    def keys(self, key: Tensor) -> Keys:
        """The keys of sampling and of rounding. `key` may also hold several keys."""
        if key.dim():
            return fold_in(key, 0), fold_in(key, 1)
        sampling, rounding = step_keys(key, 2).unbind()
        return sampling, rounding

    def encode(self, x: Tensor, keys: Keys, rows: range) -> tuple[Tensor, ...]:
        """What is kept of x (g, n, d), each of g groups of n rows packed by itself.

        Planes (g, ceil(n k / 8)) and scales (g, n, 2). `rows` numbers all rows in
        order; each of `keys` may also hold one key a row.
        """
        flat = x.flatten(0, 1)
        k, scales = self.kept(x.shape[2]), self.rounding.fit(flat)
        values = sampled_columns.sample(
            flat, keys[0], k, shared=False, distinct=True, first=rows.start
        )
        if values is None:
            values = flat.gather(1, self._indices(flat.shape[1], keys, rows))
        if compiled_rounding.takes(values, values.dtype, keys[1]):
            how, limit = self.rounding.blocks(k), near(x.dtype, dithered=self.dithered)
            lead, first = (len(x),), rows.start
            return compiled_rounding.compress(values, lead, how, keys[1], first, limit, scales)
        codes = self.rounding.round(values, scales, keys[1], rows)
        planes = pack_codes(codes.view(len(x), -1), self.bits)
        return *planes, scales.view(*x.shape[:2], 2)

    def decode(
        self,
        saved: tuple[Tensor, ...],
        skip: int,
        d: int,
        dtype: torch.dtype,
        keys: Keys,
        rows: range,
    ) -> Tensor:
        """The estimate (len(rows), d) of what `encode` kept, the first `skip` codes left out."""
        *planes, scales = saved
        k = self.kept(d)
        count = scales.shape[1] * k
        codes = unpack_codes(tuple(planes), self.bits)[:, skip : skip + count].reshape(-1, k)
        grids = scales.flatten(0, 1)
        values = self.rounding.read(codes, grids, dtype, keys[1], rows)
        x_hat = values.new_zeros(len(rows), d)
        return x_hat.scatter_(1, self._indices(d, keys, rows), values.mul_(d / k))

    def _indices(self, d: int, keys: Keys, rows: range) -> Tensor:
        return self.sample.indices((rows.stop, d), keys[0], rows)
