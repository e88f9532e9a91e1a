"""Uniform sampling of columns: the paper's sampling variants (sections 3.2 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rad import backends
from rad.draws.casts import cast
from rad.draws.dispatch import row_keys
from rad.draws.reference import READ
from rad.draws.selectors import Selectors
from rad.dtypes import accumulation_dtype
from rad.packing.pieces import joined, pieces
from rad.sketches import sampled_columns
from rad.sketches.base import FRACTIONS, ReducingSketch, Shape, Sketch, kept_rows, rows_of
from rad.sketches.contraction import by_columns, row_pieces, widened_product
from rad.sketches.noise import Columns, Noise
from rad.sketches.registry import register

MAX_SLOTS = 1024
"""The most of a row that kernels add up: to find repeated columns they compare all pairs."""

DRAWS = 1 << 16
"""Columns drawn at a time, of eight bytes each: all of them could take more than the tensor."""

DEVICE_DRAWS = 1 << 22
"""The same on a GPU, where few large operators are faster."""


@dataclass(frozen=True)
class _Sampling(ReducingSketch):
    replacement: bool = True

    def relative_variance(self, d: int) -> float:
        """(d - 1)/k with replacement, (d - k)/k without."""
        k = self.kept(d)
        return (d - 1 if self.replacement else d - k) / k

    def noise(self, d: int) -> tuple[Noise, ...]:
        factor = self.relative_variance(d) / max(d - 1, 1)
        return (Columns(mixed=False, shared=isinstance(self, SameSample), factor=factor),)

    def selectors(self, d: int) -> Selectors:
        kept, different = self.kept(d), isinstance(self, DifferentSample)
        return Selectors(kept, False, different, not self.replacement, 1.0, d / kept)

    def in_kernels(self, values: Tensor, key: Tensor) -> bool:
        """Whether kernels draw the columns of those values and read, or write, them at once."""
        return self.replacement and backends.use_kernels(values, key)

    def spreads_in_kernels(self, kept: Tensor, key: Tensor) -> bool:
        """Whether kernels draw the columns of what was kept (..., k), and add it to them."""
        return kept.shape[-1] <= MAX_SLOTS and self.in_kernels(kept, key)


@register("same_sample", decides="keep_fraction", options=("replacement",), of_paper=True)
@dataclass(frozen=True)
class SameSample(_Sampling):
    """Uniform sampling of columns, the same for every row (`same_sample`).

    Keeps x[:, J], |J| = k = int(d * keep_fraction + 0.999); x_hat adds
    (d/k) x[:, j] to column j for each j in J. J is drawn with replacement, or
    without. Unbiased: each column is expected k/d times in J. A NaN or an infinity shows
    where its column is drawn, in no other number; else it goes unseen.
    E|x_hat - x|^2 = (d - 1)/k |x|^2 with replacement, (d - k)/k |x|^2 without.
    Shapes: x (..., d) -> kept (..., k). The key is kept, not the indices.
    """

    def indices(self, shape: Shape, key: Tensor) -> Tensor:
        """The columns drawn: int64, (k,)."""
        return self.selectors(shape[-1]).columns(shape[-1], key, range(1))[0]

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        k, distinct = self.kept(x.shape[-1]), not self.replacement
        kept = sampled_columns.sample(x, key, k, shared=True, distinct=distinct)
        if kept is not None:
            return (kept,)
        if self.in_kernels(x, key):
            from rad.kernels.sampling import sample

            return (sample(x.detach(), key, k, different=False),)
        return (x.detach().index_select(-1, self.indices(x.shape, key)),)

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
        kept, wide = kept_rows(kept, rows), accumulation_dtype(dtype)
        if self.spreads_in_kernels(kept, key):
            from rad.kernels.sampling import spread

            return cast(spread(kept, key, d, wide), dtype, key, READ, rows)
        x_hat = kept.new_zeros(*kept.shape[:-1], d, dtype=wide)
        scaled = kept.to(wide) * (d / kept.shape[-1])
        x_hat.index_add_(-1, self.indices(shape, key), scaled)
        return cast(x_hat, dtype, key, READ, rows)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        (columns,) = saved
        d, distinct = shape[1], not self.replacement
        found = sampled_columns.shared_weight_grad(left, columns, key, d, distinct=distinct)
        if found is not None:
            return found

        def product(left: Tensor) -> Tensor:
            of_columns = widened_product(left, columns)
            if self.spreads_in_kernels(of_columns, key):
                from rad.kernels.sampling import spread

                return spread(of_columns, key, d, left.dtype)
            total = sampled_columns.spread(of_columns, key, d, distinct=distinct)
            if total is not None:
                return total
            indices = self.indices(shape, key)
            total = of_columns.new_zeros(len(of_columns), d)
            return total.index_add_(1, indices, of_columns.mul_(d / len(indices)))

        return by_columns(product, left, d)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        indices = self._step_indices(x.shape, keys)
        return (x.detach().gather(2, indices.expand(-1, x.shape[1], -1)),)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        columns = saved[0].to(left.dtype)  # (steps, rows, k)
        indices, d = self._step_indices(shape, keys), shape[2]
        product = torch.bmm(columns.mT, left).flatten(0, 1)
        total = product.new_zeros(d, product.shape[1])
        return total.index_add_(0, indices.flatten(), product.mul_(d / columns.shape[2]))

    def _step_indices(self, shape: Shape, keys: Tensor) -> Tensor:
        """`indices(shape[1:], keys[s])`, as drawn for a first row: (steps, 1, k)."""
        each = DifferentSample(self.keep_fraction, self.replacement)
        return each.step_indices((shape[0], 1, shape[2]), keys)


def _menu() -> Iterator[Sketch]:
    for fraction in FRACTIONS:
        yield DifferentSample(fraction, replacement=False)


@register(
    "different_sample",
    decides="keep_fraction",
    options=("replacement",),
    of_paper=True,
    menu=_menu,
)
@dataclass(frozen=True)
class DifferentSample(_Sampling):
    """Uniform sampling of columns, drawn afresh for every row (`different_sample`).

    Keeps x[n, J_n], |J_n| = k = int(d * keep_fraction + 0.999); x_hat adds
    (d/k) x[n, j] to entry (n, j) for each j in J_n. The J_n are independent, each
    drawn with replacement, or without. Unbiased, with the variance of `SameSample`
    for x_hat, and with NaN showing as there; a weight gradient, which sums over rows, has less.
    Shapes: x (..., d) -> kept (..., k). The key is kept, not the indices.
    """

    def indices(self, shape: Shape, key: Tensor, rows: range | None = None) -> Tensor:
        """The columns drawn, row by row: int64, (..., k), or (len(rows), k) with `rows`."""
        d, wanted = shape[-1], rows_of(shape) if rows is None else rows
        drawn = self.selectors(d).columns(d, key, wanted)
        return drawn.view(*shape[:-1], self.kept(d)) if rows is None else drawn

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        k, distinct = self.kept(x.shape[-1]), not self.replacement
        kept = sampled_columns.sample(x, key, k, shared=False, distinct=distinct)
        if kept is not None:
            return (kept,)
        if self.in_kernels(x, key):
            from rad.kernels.sampling import sample

            return (sample(x.detach(), key, k, different=True),)
        flat = x.detach().reshape(-1, x.shape[-1])
        parts = (
            flat[part.start : part.stop].gather(1, self.indices(x.shape, key, part))
            for part in self._drawn_at_once(x, range(len(flat)))
        )
        return (joined(parts, len(flat)).view(*x.shape[:-1], k),)

    def read_into(self, x_hat: Tensor, kept: Tensor, key: Tensor, rows: range) -> Tensor:
        """Those rows of the estimate, from what was kept of them (len(rows), k), into x_hat."""
        wide, scale = kept.to(x_hat.dtype), x_hat.shape[1] / kept.shape[1]
        if sampled_columns.read(x_hat, wide, key, rows.start, distinct=not self.replacement):
            return x_hat
        x_hat.zero_()
        for part in self._drawn_at_once(x_hat, rows):
            here = slice(part.start - rows.start, part.stop - rows.start)
            indices = self.indices(x_hat.shape, key, part)
            x_hat[here].scatter_add_(1, indices, wide[here])
        return x_hat.mul_(scale)

    def _drawn_at_once(self, x: Tensor, rows: range) -> list[range]:
        """Those rows of x (..., d), in the pieces whose columns are drawn at a time."""
        return pieces(rows, (DRAWS if x.is_cpu else DEVICE_DRAWS) // self.kept(x.shape[-1]))

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
        kept, wide = kept_rows(kept, rows), accumulation_dtype(dtype)
        if self.spreads_in_kernels(kept, key):
            from rad.kernels.sampling import spread

            x_hat = spread(kept, key, d, wide, first=rows.start if rows else 0)
            return cast(x_hat, dtype, key, READ, rows)
        x_hat = kept.new_empty(*kept.shape[:-1], d, dtype=wide)
        flat = kept.reshape(-1, kept.shape[-1])
        self.read_into(x_hat.view(-1, d), flat, key, range(len(flat)) if rows is None else rows)
        return cast(x_hat, dtype, key, READ, rows)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        (columns,) = saved
        d, distinct = shape[1], not self.replacement
        found = sampled_columns.weight_grad(left, columns, key, d, distinct=distinct)
        if found is not None:
            return found
        if self.spreads_in_kernels(columns, key):
            from rad.kernels import weight_grad as kernel

            if kernel.pays(left, columns, d):
                return kernel.sampled(left, columns, key, d)
            return super().contract(left, saved, shape, key)
        wide = accumulation_dtype(left.dtype)

        def product(left: Tensor) -> Tensor:
            total, cut = None, row_pieces(left, d)
            buffer = columns.new_empty(len(cut[0]), d, dtype=wide)
            for piece in cut:
                part = slice(piece.start, piece.stop)
                x_hat = self.read_into(buffer[: len(piece)], columns[part], key, piece)
                transposed = left[part].t().to(wide)
                total = transposed.mm(x_hat) if total is None else total.addmm_(transposed, x_hat)
            assert total is not None
            return total

        return by_columns(product, left, d)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        return (x.detach().gather(2, self.step_indices(x.shape, keys)),)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        values = saved[0].to(left.dtype)  # (steps, rows, k)
        x_hat = values.new_zeros(*values.shape[:2], shape[2])
        x_hat.scatter_add_(2, self.step_indices(shape, keys), values)
        return (x_hat.flatten(0, 1).t() @ left.flatten(0, 1)).mul_(shape[2] / values.shape[2])

    def step_indices(self, shape: Shape, keys: Tensor) -> Tensor:
        """`indices(shape[1:], keys[s])` for each step of that shape: (steps, rows, k)."""
        steps, rows, d = shape
        drawn = self.indices((steps * rows, d), row_keys(keys, rows))
        return drawn.view(steps, rows, drawn.shape[-1])
