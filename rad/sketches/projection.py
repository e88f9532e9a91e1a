"""Rademacher projection of columns: the paper's random projections (sections 3.2 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketches.base import (
    ReducingSketch,
    Shape,
    accumulation_dtype,
    kept_rows,
    rows_of,
)
from rad.sketches.casting import KEPT, READ, cast
from rad.sketches.draws import signs


@dataclass(frozen=True)
class _Projection(ReducingSketch):
    def relative_variance(self, d: int) -> float:
        """(d - 1)/k."""
        return (d - 1) / self.kept(d)

    def _signs(self, d: int, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        return signs(key, rows, self.kept(d), dtype).mul_(self.kept(d) ** -0.5)


@dataclass(frozen=True)
class Project(_Projection):
    """Projection on a random matrix that all rows share (`project`).

    Keeps x R, R (d, k) with independent entries +-1/sqrt(k), k = int(d *
    keep_fraction + 0.999); x_hat = x R R^T. Unbiased: E[R R^T] = I.
    E|x_hat - x|^2 = (d - 1)/k |x|^2. A NaN or an infinity makes its whole row NaN or infinite.
    Shapes: x (..., d) -> kept (..., k). The key is kept, not R.
    """

    def matrix(self, d: int, dtype: torch.dtype, key: Tensor) -> Tensor:
        """R: (d, k)."""
        return self._signs(d, dtype, key, range(d))

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        x = x.detach()
        wide = accumulation_dtype(x.dtype)
        kept = x.to(wide) @ self.matrix(x.shape[-1], wide, key)
        return (cast(kept, x.dtype, key, KEPT),)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        (kept,) = saved
        kept = kept_rows(kept, rows)
        wide = accumulation_dtype(dtype)
        x_hat = kept.to(wide) @ self.matrix(shape[-1], wide, key).t()
        return cast(x_hat, dtype, key, READ, rows)


@dataclass(frozen=True)
class DifferentProject(_Projection):
    """Projection on a random matrix of each row's own (`different_project`).

    Keeps x_n R_n for each row n, the R_n independent and as in `Project`;
    x_hat_n = x_n R_n R_n^T. Same variance of x_hat; a weight gradient has less.
    Shapes: x (..., d) -> kept (..., k). Each R_n is drawn as it is needed, d k
    entries for every row: meant for narrow layers, such as a recurrent state.
    """

    def matrices(self, d: int, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        """R_n for the given rows: (len(rows), d, k)."""
        drawn = self._signs(d, dtype, key, range(rows.start * d, rows.stop * d))
        return drawn.view(len(rows), d, self.kept(d))

    def _pieces(self, d: int, rows: range) -> list[range]:
        """The rows in pieces whose matrices hold some 2**20 entries."""
        step = max(1, (1 << 20) // (d * self.kept(d)))
        starts = range(rows.start, max(rows.stop, rows.start + 1), step)
        return [range(i, min(i + step, rows.stop)) for i in starts]

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        d = x.shape[-1]
        flat = x.detach().reshape(-1, 1, d)
        wide = accumulation_dtype(x.dtype)
        kept = [
            flat[piece.start : piece.stop].to(wide) @ self.matrices(d, wide, key, piece)
            for piece in self._pieces(d, range(len(flat)))
        ]
        rows = torch.cat(kept).view(-1, self.kept(d))
        return (cast(rows, x.dtype, key, KEPT).view(*x.shape[:-1], self.kept(d)),)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        (kept,) = saved
        d = shape[-1]
        wanted = rows_of(shape) if rows is None else rows
        flat = kept.view(-1, 1, kept.shape[-1])
        wide = accumulation_dtype(dtype)
        x_hat = [
            flat[piece.start : piece.stop].to(wide) @ self.matrices(d, wide, key, piece).mT
            for piece in self._pieces(d, wanted)
        ]
        read = torch.cat(x_hat).view(shape if rows is None else (len(rows), d))
        return cast(read, dtype, key, READ, rows)
