"""Everything, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.sketches.base import Shape, Sketch
from rad.sketches.noise import Noise


@dataclass(frozen=True)
class Identity(Sketch):
    """Keeps x itself. Variance 0.

    Shapes: x (..., d) -> kept (..., d), the same tensor where it owns its storage
    (so that a layer before it may keep it too at no cost), a copy where it is a
    part of a larger one.
    """

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (x.detach() if self.owns(x) else x.detach().clone(),)

    @staticmethod
    def owns(x: Tensor) -> bool:
        """Whether x is all of its storage."""
        return x.untyped_storage().nbytes() <= x.numel() * x.element_size()

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        (x,) = saved
        if rows is None:
            return x.view(shape).to(dtype)
        return x.view(-1, shape[-1])[rows.start : rows.stop].to(dtype)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return torch.Size(shape).numel() * dtype.itemsize

    def variance(self, x: Tensor) -> Tensor:
        return torch.zeros((), device=x.device)

    def noise(self, d: int) -> tuple[Noise, ...]:
        return ()

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        return left.t() @ saved[0]

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        return saved[0].to(left.dtype).flatten(0, 1).t() @ left.flatten(0, 1)
