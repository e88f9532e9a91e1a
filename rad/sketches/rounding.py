"""Unbiased rounding to a few bits, at random or with dither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.packing.codes import PLANES
from rad.sketches.base import Sketch
from rad.sketches.blockwise import BLOCKS, Rounding
from rad.sketches.grid import positions, uniform
from rad.sketches.registry import register


def _menu(kind: type[Rounding]) -> Iterator[Sketch]:
    for bits in PLANES:
        for block in BLOCKS:
            yield kind(bits, block)
            if bits > 1:
                yield kind(bits, block, zero_code=True)


@register(
    "stochastic_rounding",
    decides="bits",
    options=("block", "zero_code"),
    menu=lambda: _menu(StochasticRounding),
)
@dataclass(frozen=True)
class StochasticRounding(Rounding):
    """Rounding up or down at random.

    x = low + (i + f) step lies between the levels i and i + 1 of its block; x_hat is
    level i + 1 with probability f, else level i. Unbiased: E[x_hat] = x, to the precision of
    the type at the block's largest number: beside 1e10 a float32 is good to some 1e3, as in
    any sum. Of a number near its block's lowest (a ReLU's output beside an outlier) nothing
    is lost; of others f is cut off at parts of 2**-(31 - bits), in float32, which takes at
    most 2**-12 of x - low. Where outliers are so large, the error of all others is, too:
    clip them, give a `block`, or `RotatedRounding`. E (x_hat - x)^2 = step^2 f (1 - f),
    at most step^2 / 4, and errors of different numbers are uncorrelated (their draws
    share low bits: a covariance below 2**-34 step^2). Numbers on a level, such as the
    smallest of a block (the zeros of a ReLU's output), are kept exactly.
    Fields and bytes: `Rounding`. Nothing but codes and grids is kept.
    """

    dithered: ClassVar[bool] = False

    def _position(self, level: Tensor, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        return level.to(dtype)

    def _noise(self, x: Tensor, scales: Tensor) -> Tensor:
        fraction = positions(x, scales).frac_()
        return fraction * (1 - fraction)


@register(
    "dithered_rounding",
    decides="bits",
    options=("block", "zero_code"),
    menu=lambda: _menu(DitheredRounding),
)
@dataclass(frozen=True)
class DitheredRounding(Rounding):
    """Rounding after adding noise that is subtracted again when read (subtractive dither).

    With u uniform on [0, 1), drawn again from the key: the code is i = floor(p + u) for
    the position p = (x - low) / step, and x_hat = low + (i - u + 1/2) step. Then
    x_hat - x is uniform on a step whatever x is: unbiased, E (x_hat - x)^2 = step^2 / 12,
    half of what stochastic rounding has on average, but for numbers on a level too
    (`zero_code` keeps zeros exact); in float32 the mean is off by 2**-(32 - bits) of a step at
    most. p + u never leaves the grid: nothing is clipped.
    Reading costs the draws again.
    Fields and bytes: `Rounding`. Nothing but codes and grids is kept.
    """

    dithered: ClassVar[bool] = True

    def _position(self, level: Tensor, dtype: torch.dtype, key: Tensor, rows: range) -> Tensor:
        one = 1 << self.fraction_bits
        drawn = uniform(key, rows, level.shape[1], self.fraction_bits)
        fixed = (level.to(torch.int32) << self.fraction_bits).sub_(drawn)
        at = fixed.add_(one >> 1).to(dtype)
        if dtype == torch.float64:
            at -= 0.5
        return at.mul_(1 / one)

    def _noise(self, x: Tensor, scales: Tensor) -> Tensor:
        return x.new_full(x.shape, 1 / 12, dtype=accumulation_dtype(x.dtype))
