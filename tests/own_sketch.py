"""A sketch that the project does not know: numbers rounded at random to powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.dispatch import integers
from rad.sketches.base import Shape, Sketch, kept_rows, rows_of
from rad.sketches.noise import Noise, Numbers
from rad.sketches.registry import register

DRAWS = 1 << 24


@register("powers_of_two", menu=lambda: [PowersOfTwo()])
@dataclass(frozen=True)
class PowersOfTwo(Sketch):
    """Each x becomes one of the two powers of two around it; kept: its sign and exponent, a byte.

    With 2^e <= |x| < 2^(e + 1), |x_hat| is 2^(e + 1) with probability |x| / 2^e - 1, else 2^e.
    Unbiased: E[x_hat] = x. E (x_hat - x)^2 = (2^(e + 1) - |x|)(|x| - 2^e), uncorrelated.
    """

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        mantissa, exponent = torch.frexp(x.detach().abs())  # |x| = mantissa 2^exponent
        drawn = integers(key, rows_of(x.shape), x.shape[-1], DRAWS).view(x.shape)
        up = drawn < (2 * mantissa - 1) * DRAWS
        return (((exponent + up + 63).clamp(1, 127) * x.detach().sign()).to(torch.int8),)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        code = kept_rows(saved[0], rows).to(dtype)
        return torch.exp2(code.abs() - 64) * code.sign()

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        return torch.Size(shape).numel()

    def variance(self, x: Tensor) -> Tensor:
        return self.element_variance(x).sum()

    def element_variance(self, x: Tensor) -> Tensor:
        size = x.detach().abs()
        low = torch.exp2(torch.frexp(size)[1].to(size.dtype) - 1)
        return ((2 * low - size) * (size - low)).where(size > 0, 0)

    def noise(self, d: int) -> tuple[Noise, ...]:
        return (Numbers(self),)
