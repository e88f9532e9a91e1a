"""The sketch contract: what is kept of a tensor, and how it is read back without bias."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rad.draws.selectors import Selectors
from rad.dtypes import accumulation_dtype
from rad.sketches.contraction import by_columns, row_pieces
from rad.sketches.noise import Noise

Shape = tuple[int, ...]

FRACTIONS = (0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Keep fractions to choose among (`variant=auto`)."""


class Sketch(ABC):
    """A small random summary of a tensor from which an unbiased estimate of it is read.

    A sketch acts on the last axis, of size d; the axes before it are flattened to
    *rows*. Subclasses are frozen dataclasses; numpy's numbers in their fields become Python's, of
    the same value. The key is not part of what `compress` returns: whoever keeps that keeps the
    key with it.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    @abstractmethod
    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """What is kept of x (..., d): tensors that are all of their storage, x itself among them.

        Never a part of a larger tensor, which would keep all of that alive.
        """

    @abstractmethod
    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        """The estimate x_hat of that shape and dtype, with E_key[x_hat] = x.

        With `rows`, only those rows of x_hat, as (len(rows), d).
        """

    @abstractmethod
    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        """Exactly the bytes that `compress` keeps of a tensor of that shape and dtype."""

    @abstractmethod
    def variance(self, x: Tensor) -> Tensor:
        """E |x_hat - x|^2 over the keys, in closed form, summed over all of x: shape ()."""

    def noise(self, d: int) -> tuple[Noise, ...]:
        """The parts of the error x_hat - x of rows of d numbers; none where it is zero.

        Raises TypeError, by default: a weight gradient's variance then has no closed form.
        """
        raise TypeError(f"no closed-form weight gradient variance for {type(self).__name__}")

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        """left^T x_hat for left (rows, m) and the x_hat (rows, d) of `saved`: (m, d).

        Of the dtype of `left`. Reads x_hat a piece of the rows at a time; sketches override it
        where x_hat need not be read densely.
        """
        rows, d = shape
        wide = accumulation_dtype(left.dtype)

        def product(left: Tensor) -> Tensor:
            total = saved[0].new_empty(left.shape[1], d, dtype=wide)
            for number, piece in enumerate(row_pieces(left, d)):
                x_hat = self.decompress(saved, (rows, d), wide, key, piece)
                part = left[piece.start : piece.stop].t().to(wide)
                total.addmm_(part, x_hat, beta=min(number, 1))
            return total

        return by_columns(product, left, d)

    def compress_steps(self, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        """What is kept of x (steps, rows, d): `compress(x[s], keys[s])`, stacked over the steps.

        One step of a recurrence is so little work that calling the sketch for each step costs
        more than the work itself: sketches override this where they can do all steps at once, with
        the same draws.
        """
        kept = [self.compress(x_s, key) for x_s, key in zip(x.unbind(), keys.unbind(), strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*kept, strict=True))

    def decompress_steps(
        self, saved: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype, keys: Tensor
    ) -> Tensor:
        """The estimate of the x (steps, rows, d) of that shape that `compress_steps` kept.

        `dtype` is float32 at least.
        """
        steps = zip(keys.unbind(), *(part.unbind() for part in saved), strict=True)
        read = [self.decompress(tuple(kept), shape[1:], dtype, key) for key, *kept in steps]
        return torch.stack(read)

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        """sum_s x_hat_s^T left_s, for the x_hat_s (steps, rows, d) that `saved` holds: (d, m).

        left (steps, rows, m) is of the dtype in which sums run. One step at a time, unless the
        sketch overrides it. The transpose of what `contract` gives.
        """
        total = saved[0].new_zeros(shape[2], left.shape[2], dtype=left.dtype)
        for left_s, key, *parts in zip(left, keys, *saved, strict=True):
            total = total.add_(self.contract(left_s, tuple(parts), shape[1:], key).t())
        return total

    def selectors(self, d: int) -> Selectors | None:
        """How kernels read rows of d; None for a sketch that is not made of selectors."""
        return None


def rows_of(shape: Shape) -> range:
    """The rows of a tensor of that shape: its leading axes flattened."""
    return range(torch.Size(shape[:-1]).numel())


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 over all of x, accumulated in float32 at least: shape ()."""
    return x.detach().to(accumulation_dtype(x.dtype)).square().sum()


def kept_rows(kept: Tensor, rows: range | None) -> Tensor:
    """Those rows of what was kept (..., k), as (len(rows), k); all of it where `rows` is None."""
    if rows is None:
        return kept
    return kept.reshape(-1, kept.shape[-1])[rows.start : rows.stop]


@dataclass(frozen=True)
class ReducingSketch(Sketch):
    """A sketch that keeps k = int(d * keep_fraction + 0.999) numbers of each row of d.

    Raises ValueError unless 0 < keep_fraction <= 1.
    """

    keep_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction must lie in (0, 1], got {self.keep_fraction}")

    def kept(self, d: int) -> int:
        """k, how many numbers are kept of d; at least one, as in the authors' code."""
        return max(1, min(d, int(d * self.keep_fraction + 0.999)))

    def kept_of(self, shape: Shape) -> int:
        """What a keep fraction is a fraction of, for a tensor of that shape: a row's numbers."""
        return shape[-1]

    @abstractmethod
    def relative_variance(self, d: int) -> float:
        """E |x_hat - x|^2 / |x|^2."""

    def variance(self, x: Tensor) -> Tensor:
        return self.relative_variance(x.shape[-1]) * squared_norm(x)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return len(rows_of(shape)) * self.kept(shape[-1]) * dtype.itemsize
