"""Rounding after a rotation that spreads a row's outliers over all its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.casts import cast
from rad.draws.dispatch import signs
from rad.draws.reference import READ, make_key
from rad.dtypes import accumulation_dtype
from rad.packing.codes import PLANES
from rad.sketches.base import Shape, Sketch, rows_of
from rad.sketches.blockwise import PIECE, Rounding
from rad.sketches.noise import Noise, Numbers
from rad.sketches.registry import register
from rad.sketches.rounding import DitheredRounding, StochasticRounding

SEED = 0x5249474E
"""Of the signs: the same for all rows, keys and programs."""


def rotate(x: Tensor) -> Tensor:
    """x (..., d) times the orthogonal matrix S H: the same shape and dtype.

    S is a diagonal of fixed random signs; H has the Hadamard matrices of the powers of two that
    add up to d on its diagonal, the largest first, so that any d keeps its size.
    """
    return _blockwise(hadamard, x * _signs(x))


def unrotate(y: Tensor) -> Tensor:
    """The inverse of `rotate`."""
    return _blockwise(hadamard, y).mul_(_signs(y))


def hadamard(x: Tensor) -> Tensor:
    """x (..., n) times the symmetric orthogonal Hadamard matrix, n a power of two; n log n sums."""
    n = x.shape[-1]
    half = 1
    while half < n:
        low, high = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
        half *= 2
    return x * n**-0.5


def _signs(x: Tensor) -> Tensor:
    return signs(make_key(SEED, x.device), range(1), x.shape[-1], x.dtype)[0]


def _blockwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    d = x.shape[-1]
    sizes = [1 << bit for bit in reversed(range(d.bit_length())) if d >> bit & 1]
    return torch.cat([function(part) for part in x.split(sizes, -1)], -1) if sizes else x.clone()


def _menu() -> Iterator[Sketch]:
    for bits in PLANES:
        yield RotatedRounding(bits)


@register("rotated_rounding", decides="bits", options=("block", "dithered"), menu=_menu)
@dataclass(frozen=True)
class RotatedRounding(Sketch):
    """Rounding of the rotated rows: x S H, read back and rotated back.

    The range of a row decides the step of its grid. Rotated, a row of norm |x| has numbers of
    about |x| / sqrt(d), and no outlier sets the step for all others (compare EDEN, Vargaftik et
    al., ICML 2022). It gains where few numbers of a row are large, and loses where zeros would be
    kept exactly or signs are all the same, as behind a ReLU. The rotation is fixed, the rounding
    is what is random: x_hat = (x S H + e)(S H)^T with the errors e of `DitheredRounding` (default)
    or `StochasticRounding`. Unbiased: E[e] = 0. E |x_hat - x|^2 = E |e|^2, that of the rounding on
    the rotated rows; errors within a row of x are correlated, those of different rows are not.
    A NaN or an infinity makes its row NaN, and what shares a `block` with it.
    Fields and bytes: `Rounding`, without `zero_code`, but grids are float32 at least: rotated rows
    are never rounded to a shorter type, which would be a bias.
    """

    bits: int
    block: int | None = None
    dithered: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rounding  # raises for fields that cannot be used

    @property
    def rounding(self) -> Rounding:
        """What rounds the rotated rows."""
        kind = DitheredRounding if self.dithered else StochasticRounding
        return kind(self.bits, self.block)

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        if self.rounding.in_kernels(x, key):
            return self.rounding.compress(self._rotated(x), key)
        flat, d = x.detach().reshape(-1), max(1, x.shape[-1])

        def read(part: slice) -> Tensor:
            return self._rotated(flat[part].view(-1, d)).view(-1)

        return self.rounding.compress_parts(read, x.shape, key, row=d)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        wide = accumulation_dtype(dtype)
        wanted, step = rows_of(shape) if rows is None else rows, max(1, PIECE // max(1, shape[-1]))
        if len(wanted) <= step or self.rounding.in_kernels(saved[-1], key):
            x_hat = unrotate(self.rounding.decompress(saved, shape, wide, key, rows))
            return cast(x_hat, dtype, key, READ, rows)
        x_hat = saved[-1].new_empty(len(wanted), shape[-1], dtype=dtype)
        for number, part in enumerate(x_hat.split(step)):
            first = wanted.start + number * step
            piece = range(first, first + len(part))
            read = unrotate(self.rounding.decompress(saved, shape, wide, key, piece))
            part.copy_(cast(read, dtype, key, READ, piece))
        return x_hat.view(shape if rows is None else x_hat.shape)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return self.rounding.nbytes(shape, accumulation_dtype(dtype))

    def variance(self, x: Tensor) -> Tensor:
        return self.element_variance(x).sum()

    def noise(self, d: int) -> tuple[Noise, ...]:
        return (Numbers(self, rotation=rotate),)

    def element_variance(self, x: Tensor) -> Tensor:
        """E e^2 of each number of the rotated x (..., d), all of them uncorrelated: (..., d)."""
        return self.rounding.element_variance(self._rotated(x))

    @staticmethod
    def _rotated(x: Tensor) -> Tensor:
        return rotate(x.detach().to(accumulation_dtype(x.dtype)))
