"""The sketch contract: what is kept of a tensor, and how it is read back without bias."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Sketch(ABC):
    """A small random summary of a tensor from which an unbiased estimate of it is read.

    A sketch acts on the last axis, of size d; the axes before it are flattened to
    *rows*. Subclasses are frozen dataclasses. The key is not part of what
    `compress` returns: whoever keeps that keeps the key with it.
    """

    @abstractmethod
    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """What is kept of x (..., d): tensors that own their storage, never views of x."""

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


def rows_of(shape: Shape) -> range:
    """The rows of a tensor of that shape: its leading axes flattened."""
    return range(torch.Size(shape[:-1]).numel())


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over values of that dtype run: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 over all of x, accumulated in float32 at least: shape ()."""
    return x.detach().to(accumulation_dtype(x.dtype)).square().sum()


def kept_rows(kept: Tensor, rows: range | None) -> Tensor:
    """Those rows of what was kept (..., k), as (len(rows), k); all of it where `rows` is None."""
    if rows is None:
        return kept
    return kept.reshape(-1, kept.shape[-1])[rows.start : rows.stop]


def pieces(rows: range, step: int) -> list[range]:
    """Those rows, at most `step` of them at a time; one piece where there are none."""
    step, stop = max(1, step), max(rows.stop, rows.start + 1)
    return [range(i, min(i + step, rows.stop)) for i in range(rows.start, stop, step)]


def joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Those parts (n, ...) one below the other: (rows, ...), without a second copy of them all."""
    whole, place = None, 0
    for part in parts:
        if len(part) == rows:
            return part
        whole = part.new_empty(rows, *part.shape[1:]) if whole is None else whole
        whole[place : place + len(part)] = part
        place += len(part)
    assert whole is not None
    return whole


@dataclass(frozen=True)
class ReducingSketch(Sketch):
    """A sketch that keeps k = int(d * keep_fraction + 0.999) numbers of each row of d.

    Raises ValueError unless 0 < keep_fraction <= 1.
    """

    keep_fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction must lie in (0, 1], got {self.keep_fraction}")

    def kept(self, d: int) -> int:
        """k, how many numbers are kept of d; at least one, as in the authors' code."""
        return max(1, min(d, int(d * self.keep_fraction + 0.999)))

    def kept_of(self, shape: Shape) -> int:
        """What the keep fraction is one of, in a tensor of that shape: the numbers of a row."""
        return shape[-1]

    @abstractmethod
    def relative_variance(self, d: int) -> float:
        """E |x_hat - x|^2 / |x|^2."""

    def variance(self, x: Tensor) -> Tensor:
        return self.relative_variance(x.shape[-1]) * squared_norm(x)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return len(rows_of(shape)) * self.kept(shape[-1]) * dtype.itemsize
