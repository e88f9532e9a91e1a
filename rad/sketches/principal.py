"""Leading directions kept exactly, a random projection of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rad.draws.casts import cast, cast_at_random
from rad.draws.dispatch import fold_in, row_keys
from rad.draws.normal import normals
from rad.draws.reference import KEPT, READ
from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.packing.pieces import joined, pieces
from rad.sketches.base import ReducingSketch, Shape, kept_rows, rows_of, squared_norm
from rad.sketches.contraction import by_columns, widened_product
from rad.sketches.directions import leading_directions, orthonormal
from rad.sketches.noise import Complement, Noise
from rad.sketches.registry import register

BLOCK = 1 << 17
"""Numbers of a short type that are converted at a time."""


class Sizes(NamedTuple):
    """How many directions are kept exactly, and of how many dimensions the random rest is."""

    exact: int
    random: int


@register("principal_project", decides="keep_fraction", options=("principal_fraction",))
@dataclass(frozen=True)
class PrincipalProject(ReducingSketch):
    """The leading principal directions of x exactly, and a random projection of the rest.

    Compare PRAC (ICML 2026). With Q1 (d, r1) the leading right singular vectors of the rows and Q2
    (d, r2) a random orthonormal frame of what is orthogonal to them, which all rows share, keeps
    x Q1, x Q2 and Q1; x_hat = x Q1 Q1^T + (d - r1)/r2 x Q2 Q2^T. Unbiased: Q1 depends on x alone,
    and Q2, normal draws made orthonormal beside Q1, has no preferred direction, so that
    E[Q2 Q2^T] = r2/(d - r1) (I - Q1 Q1^T). With y = x - x Q1 Q1^T,
    E|x_hat - x|^2 = ((d - r1)/r2 - 1) |y|^2: nothing where the rows have r1 directions.

    At most n k numbers are kept, k = int(d * keep_fraction + 0.999), as many as by `Project`. Those
    of x Q1 and Q1, r1 (n + d), are `principal_fraction` of them or less; r2 takes what is left. Few
    rows (n far below d) have few directions, one row none. Everything is kept with
    keep_fraction = 1.
    Shapes: x (..., d) -> kept (..., r1 + r2) and Q1 (d, r1), of the type of x; a NaN or an infinity
    makes its whole row NaN or infinite.

    Q1 is sought afresh in each call (`rad.sketches.directions`), where PRAC refreshes it every so
    many steps: what a sketch keeps is a function of x and its key. Both passes of a layer make a
    frame (d, r1 + r2) orthonormal, some 2 d (r1 + r2)^2 operations: for rows of up to a few
    thousand numbers. At 0.1 and on one core of a CPU, compressing and contracting take 2 to 8 times
    as long as the exact weight gradient of 300 outputs, a `Project` 0.5 to 1.5 times
    (docs/principal.md). `variant=auto` is not offered it: on the MNIST network, at budgets of 0.01
    to 0.1, it chose none of eight in any layer, and planning took up to 1.8 times as long.
    Raises ValueError unless 0 < keep_fraction <= 1, UsageError unless 0 <= principal_fraction < 1.
    """

    principal_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.principal_fraction < 1:
            raise UsageError(f"principal_fraction is {self.principal_fraction}: give one in [0, 1)")

    def sizes(self, rows: int, d: int) -> Sizes:
        """r1 and r2 for so many rows of d numbers."""
        k = self.kept(d)
        if k == d or rows == 0:
            return Sizes(0, k)
        numbers, each = rows * k, rows + d
        exact = min(int(self.principal_fraction * numbers / each), (numbers - rows) // each)
        return Sizes(exact, (numbers - exact * each) // rows)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        rows, d = len(rows_of(shape)), shape[-1]
        exact, random = self.sizes(rows, d)
        return (rows * (exact + random) + d * exact) * dtype.itemsize

    def relative_variance(self, d: int) -> float:
        """Raises TypeError: it depends on x."""
        raise TypeError("the variance of a principal projection depends on x: see variance(x)")

    def variance(self, x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1, x.shape[-1])
        directions, d = self.directions(x), x.shape[-1]
        rest = flat.to(directions.dtype)
        rest = rest - rest @ directions @ directions.t()
        return self.rest_variance(len(flat), d) * squared_norm(rest)

    def noise(self, d: int) -> tuple[Noise, ...]:
        return (Complement(self),)

    def directions(self, x: Tensor) -> Tensor:
        """Q1 for the rows of x (..., d), as it is read: (d, r1), of float32 at least."""
        return orthonormal(self._kept_directions(_rows(x)).to(accumulation_dtype(x.dtype)))[0]

    def rest_variance(self, rows: int, d: int) -> float:
        """(d - r1)/r2 - 1, for so many rows of d numbers."""
        exact, random = self.sizes(rows, d)
        return (d - exact) / random - 1

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        flat, d = _rows(x), x.shape[-1]
        directions = self._kept_directions(flat)
        (frame,) = self._frames(directions, accumulation_dtype(x.dtype), key, flat.shape[1])
        (rows,) = flat
        step = len(rows) if x.dtype == frame.dtype else BLOCK // max(1, d)
        parts = (
            cast(rows[part.start : part.stop].to(frame.dtype) @ frame, x.dtype, key, KEPT, part)
            for part in pieces(range(len(rows)), step)
        )
        return joined(parts, len(rows)).view(*x.shape[:-1], frame.shape[1]), directions[0]

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        kept, directions = saved
        wide, count = accumulation_dtype(dtype), len(rows_of(shape))
        (frame,) = self._frames(directions[None], wide, key, count)
        wanted = kept_rows(kept, rows).to(wide) * self._factors(count, shape[-1], frame)
        return cast(wanted @ frame.t(), dtype, key, READ, rows)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        kept, directions = saved
        rows, d = shape
        (frame,) = self._frames(directions[None], accumulation_dtype(left.dtype), key, rows)
        factors = self._factors(rows, d, frame)
        return by_columns(lambda left: (widened_product(left, kept) * factors) @ frame.t(), left, d)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        wide, rows = accumulation_dtype(x.dtype), x.shape[1]
        directions = self._kept_directions(x.detach())
        kept = torch.bmm(x.detach().to(wide), self._frames(directions, wide, keys, rows))
        if kept.dtype == x.dtype:
            return kept, directions
        of_rows = row_keys(fold_in(keys, KEPT), rows)
        return cast_at_random(kept, x.dtype, of_rows), directions

    def decompress_steps(
        self, saved: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype, keys: Tensor
    ) -> Tensor:
        _, rows, d = shape
        frames = self._frames(saved[1], dtype, keys, rows)
        return torch.bmm(saved[0].to(dtype) * self._factors(rows, d, frames), frames.mT)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        _, rows, d = shape
        frames = self._frames(saved[1], left.dtype, keys, rows)
        frames = frames * self._factors(rows, d, frames)
        product = torch.bmm(saved[0].to(left.dtype).mT, left)  # (steps, r1 + r2, m)
        return frames.transpose(0, 1).flatten(1) @ product.flatten(0, 1)

    def _kept_directions(self, x: Tensor) -> Tensor:
        """Q1 of each step of x (steps, n, d), as it is kept: of the type of x.

        A shorter type rounds it. It is made orthonormal when it is read, and any orthonormal Q1
        will do.
        """
        return leading_directions(x, self.sizes(*x.shape[1:]).exact).to(x.dtype)

    def _frames(self, directions: Tensor, dtype: torch.dtype, keys: Tensor, rows: int) -> Tensor:
        """(Q1 Q2) of each step, for its kept directions (steps, d, r1): (steps, d, r1 + r2).

        `keys` holds a key for each step, or is the key of a single one.
        """
        steps, d, _ = directions.shape
        each = row_keys(keys, d) if keys.dim() else keys
        drawn = normals(each, range(steps * d), self.sizes(rows, d).random, dtype)
        columns = torch.cat([directions.to(dtype), drawn.view(steps, d, -1)], 2)
        del drawn
        return orthonormal(columns)

    def _factors(self, rows: int, d: int, like: Tensor) -> Tensor:
        """What x Q1 and x Q2 are multiplied with when read, 1 and (d - r1)/r2: (r1 + r2,)."""
        exact, random = self.sizes(rows, d)
        factors = like.new_ones(exact + random)
        factors[exact:] = (d - exact) / random
        return factors


def _rows(x: Tensor) -> Tensor:
    """The rows of x (..., d), as a single step: (1, n, d)."""
    return x.detach().reshape(1, -1, x.shape[-1])
