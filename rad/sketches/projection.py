"""Rademacher projection of columns: the paper's random projections (sections 3.2 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.casts import cast, cast_at_random
from rad.draws.dispatch import fold_in, row_keys, signs
from rad.draws.reference import KEPT, READ
from rad.draws.selectors import Selectors
from rad.dtypes import accumulation_dtype
from rad.packing.pieces import joined, pieces
from rad.sketches.base import ReducingSketch, Shape, kept_rows, rows_of
from rad.sketches.contraction import by_columns, widened_product
from rad.sketches.noise import Columns, Noise
from rad.sketches.registry import register

LARGEST = 1 << 19
"""Entries of a random matrix that is drawn whole; a larger one is drawn some rows at a time."""

BLOCK = 1 << 17
"""Entries that are then drawn at a time, and numbers of a short type that are converted."""


@dataclass(frozen=True)
class _Projection(ReducingSketch):
    def relative_variance(self, d: int) -> float:
        """(d - 1)/k."""
        return (d - 1) / self.kept(d)

    def noise(self, d: int) -> tuple[Noise, ...]:
        shared = isinstance(self, Project)
        return (Columns(mixed=True, shared=shared, factor=1 / self.kept(d)),)

    def _signs(self, d: int, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        return signs(key, rows, self.kept(d), dtype).mul_(self.kept(d) ** -0.5)

    def _blocks(self, d: int) -> list[range]:
        """The rows 0..d-1 of a random matrix, in the blocks in which it is drawn."""
        k = self.kept(d)
        step = d if d * k <= LARGEST else max(1, BLOCK // k)
        return [range(start, min(start + step, d)) for start in range(0, d, step)]

    def selectors(self, d: int) -> Selectors:
        kept, scale = self.kept(d), self.kept(d) ** -0.5
        return Selectors(kept, True, isinstance(self, DifferentProject), False, scale, scale)

    def _gather(self, x: Tensor, key: Tensor, first: int = 0) -> Tensor:
        """x R for x (..., d), of the accumulation dtype; R are rows first..first+d-1 of signs."""
        d, wide = x.shape[-1], accumulation_dtype(x.dtype)
        if len(self._blocks(d)) == 1 and x.dtype == wide:
            return x @ self._signs(d, wide, key, range(first, first + d))
        flat, total = x.reshape(-1, d), None
        step = len(flat) if x.dtype == wide else BLOCK // len(self._blocks(d)[0])
        rows = pieces(range(len(flat)), step)
        for block in self._blocks(d):
            matrix = self._signs(d, wide, key, range(first + block.start, first + block.stop))
            columns = flat[:, block.start : block.stop]
            if total is None:
                products = (columns[r.start : r.stop].to(wide) @ matrix for r in rows)
                total = joined(products, len(flat))
                continue
            for r in rows:
                total[r.start : r.stop].addmm_(columns[r.start : r.stop].to(wide), matrix)
        assert total is not None
        return total.view(*x.shape[:-1], -1)

    def _spread(self, kept: Tensor, d: int, key: Tensor, first: int = 0) -> Tensor:
        """kept R^T, (n, d), for kept (n, k) of the accumulation dtype; R as in `_gather`."""
        if len(self._blocks(d)) == 1:
            return kept @ self._signs(d, kept.dtype, key, range(first, first + d)).t()
        x_hat = None
        for block in self._blocks(d):
            rows = range(first + block.start, first + block.stop)
            part = kept @ self._signs(d, kept.dtype, key, rows).t()
            x_hat = part.new_empty(len(kept), d) if x_hat is None else x_hat
            x_hat[:, block.start : block.stop] = part
        assert x_hat is not None
        return x_hat


@register("project", decides="keep_fraction", of_paper=True)
@dataclass(frozen=True)
class Project(_Projection):
    """Projection on a random matrix that all rows share (`project`).

    Keeps x R, R (d, k) with independent entries +-1/sqrt(k), k = int(d *
    keep_fraction + 0.999); x_hat = x R R^T. Unbiased: E[R R^T] = I.
    E|x_hat - x|^2 = (d - 1)/k |x|^2. A NaN or an infinity makes its whole row NaN or infinite.
    Shapes: x (..., d) -> kept (..., k). The key is kept, not R, of which LARGEST
    entries at most stand in memory; in a recurrence, the matrices of a chunk of steps.
    """

    def matrix(self, d: int, dtype: torch.dtype, key: Tensor) -> Tensor:
        """R: (d, k)."""
        return self._signs(d, dtype, key, range(d))

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        if x.dtype == accumulation_dtype(x.dtype):
            return (self._gather(x.detach(), key),)
        flat, k = x.detach().reshape(-1, x.shape[-1]), self.kept(x.shape[-1])
        step = max(BLOCK, flat.numel() // 4) // k  # sums of float32: half of what x takes
        parts = (
            cast(self._gather(flat[part.start : part.stop], key), x.dtype, key, KEPT, part)
            for part in pieces(range(len(flat)), step)
        )
        return (joined(parts, len(flat)).view(*x.shape[:-1], k),)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        (kept,) = saved
        kept = kept.reshape(-1, kept.shape[-1]) if rows is None else kept_rows(kept, rows)
        x_hat = self._spread(kept.to(accumulation_dtype(dtype)), shape[-1], key)
        return cast(x_hat, dtype, key, READ, rows).view(shape if rows is None else x_hat.shape)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        def product(left: Tensor) -> Tensor:
            return self._spread(widened_product(left, saved[0]), shape[1], key)

        return by_columns(product, left, shape[1])

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        wide = accumulation_dtype(x.dtype)
        kept = torch.bmm(x.detach().to(wide), self._step_matrices(x.shape[2], wide, keys))
        if kept.dtype == x.dtype:
            return (kept,)
        of_rows = row_keys(fold_in(keys, KEPT), x.shape[1])
        return (cast_at_random(kept, x.dtype, of_rows),)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        product = torch.bmm(saved[0].to(left.dtype).mT, left)  # (steps, k, m)
        matrices = self._step_matrices(shape[2], left.dtype, keys)
        return matrices.transpose(0, 1).flatten(1) @ product.flatten(0, 1)

    def _step_matrices(self, d: int, dtype: torch.dtype, keys: Tensor) -> Tensor:
        """`matrix(d, dtype, keys[s])`: (steps, d, k)."""
        each = DifferentProject(self.keep_fraction)  # whose first row draws as a Project
        return each.matrices(d, dtype, row_keys(keys, d), range(len(keys)))


@register("different_project", decides="keep_fraction", of_paper=True)
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

    def _pieces(self, d: int, rows: range, dtype: torch.dtype) -> list[range]:
        """The rows in pieces whose matrices hold at most LARGEST entries, or of one row.

        At most BLOCK where x is of a short type (`dtype`), since matrices are of float32 at least.
        """
        entries = LARGEST if dtype == accumulation_dtype(dtype) else BLOCK
        return pieces(rows, entries // (d * self.kept(d)))

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        d = x.shape[-1]
        flat = x.detach().reshape(-1, 1, d)
        wide = accumulation_dtype(x.dtype)
        rows = range(len(flat))

        def sums(rows: range) -> Tensor:
            cut = self._pieces(d, rows, x.dtype)
            values = ((flat[piece.start : piece.stop].to(wide), piece) for piece in cut)
            parts = (
                self._gather(part[:, 0], key, piece.start * d)
                if len(piece) == 1
                else (part @ self.matrices(d, wide, key, piece))[:, 0]
                for part, piece in values
            )
            return joined(parts, len(rows))

        step = len(rows) if x.dtype == wide else BLOCK // self.kept(d)
        parts = (cast(sums(part), x.dtype, key, KEPT, part) for part in pieces(rows, step))
        return (joined(parts, len(flat)).view(*x.shape[:-1], self.kept(d)),)

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
        cut = self._pieces(d, wanted, kept.dtype)
        values = (flat[piece.start : piece.stop].to(wide) for piece in cut)
        parts = (
            self._spread(part[:, 0], d, key, piece.start * d)
            if len(piece) == 1
            else (part @ self.matrices(d, wide, key, piece).mT)[:, 0]
            for piece, part in zip(cut, values, strict=True)
        )
        x_hat = cast(joined(parts, len(wanted)), dtype, key, READ, rows)
        return x_hat.view(shape if rows is None else (len(rows), d))
