"""The sketch contract: what is kept of a tensor, and how it is read back without bias."""

from __future__ import annotations

from abc import ABC, abstractmethod

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


def check_keep_fraction(keep_fraction: float) -> None:
    """Raise ValueError unless 0 < keep_fraction <= 1."""
    if not 0 < keep_fraction <= 1:
        raise ValueError(f"keep_fraction must lie in (0, 1], got {keep_fraction}")


def kept_count(d: int, keep_fraction: float) -> int:
    """How many of d numbers are kept: int(d * keep_fraction + 0.999), as in the paper's code."""
    return max(1, min(d, int(d * keep_fraction + 0.999)))
