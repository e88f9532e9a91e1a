"""What a recurrent layer multiplies in its backward pass, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rad.sketches.base import Shape, Sketch
from rad.sketches.identity import Identity


@dataclass(frozen=True, eq=False)
class Recording(Sketch):
    """Keeps everything, and remembers what it was given and which products it took part in.

    Not an `Identity`, which operators treat apart. `shapes` are those of the tensors it
    compressed; `products` the pairs of the tensor (rows, d) and the gradient of the layer's
    output (rows, out_features) of each weight gradient calculated by `contract`, which is once a
    step in a recurrent layer.
    """

    shapes: list[Shape] = field(default_factory=list)
    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        self.shapes.append(tuple(x.shape))
        return Identity().compress(x.clone(), key)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        return Identity().decompress(saved, shape, dtype, key, rows)

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return Identity().nbytes(shape, dtype)

    def variance(self, x: Tensor) -> Tensor:
        return Identity().variance(x)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        (x,) = saved
        self.products.append((x, left.detach().to(x.dtype, copy=True)))
        return Identity().contract(left, (x.to(left.dtype),), shape, key)
