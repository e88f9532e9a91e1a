"""Rows kept with a probability that grows with their norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.casts import cast
from rad.draws.dispatch import words
from rad.draws.reference import KEPT, READ
from rad.dtypes import accumulation_dtype
from rad.packing.pieces import joined, pieces
from rad.sketches.base import ReducingSketch, Shape, rows_of
from rad.sketches.contraction import by_columns, widened_product
from rad.sketches.noise import Noise, Rows
from rad.sketches.registry import register

UNIT = 1 << 32
"""Inclusion probabilities are multiples of 1 / UNIT."""

PIECE = 1 << 16
"""Numbers that are converted at a time."""

_LEAST = 2.0**-20
"""The smallest norm a row is sampled by, as a fraction of the mean: all can be drawn."""


@register("importance_sampling", decides="keep_fraction")
@dataclass(frozen=True)
class ImportanceSampling(ReducingSketch):
    """Sampling of whole rows by their norm, systematic, without replacement.

    Keeps x_n / pi_n for k = int(N * keep_fraction + 0.999) of the N rows, drawn with
    inclusion probabilities pi_n = min(1, c |x_n|) that sum to k (the best for the
    variance of x_hat). The pi_n are laid end to end on [0, k), and a row is drawn where
    it holds one of the points u, u + 1, ..., u + k - 1, u uniform on [0, 1) (Madow,
    1949). Unbiased, exactly so: u and the sums of the pi_n are multiples of 2**-32.
    E|x_hat - x|^2 = sum_n (1/pi_n - 1) |x_n|^2. Rows that hold NaN or an infinity are
    kept before others, and their finite numbers stay finite.

    Unlike in other sketches, which rows are kept depends on the other rows: a weight gradient's
    variance also has covariances (`weight_covariance`). The backward pass multiplies k rows only.
    `variant=auto` is not offered it: that closed form takes N^2 numbers, and on the MNIST network
    rounding, of all or of sampled numbers, has less variance in the bytes of 0.01 and more.
    Shapes: x (..., d) -> kept (k, d) and the rows' numbers (k,), int32.
    """

    def kept_of(self, shape: Shape) -> int:
        """The rows, of which a keep fraction is kept."""
        return len(rows_of(shape))

    def relative_variance(self, d: int) -> float:
        """Raises TypeError: it depends on x."""
        raise TypeError("the variance of importance sampling depends on x: see variance(x)")

    def variance(self, x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1, x.shape[-1]).to(accumulation_dtype(x.dtype))
        if not len(flat):
            return flat.new_zeros(())
        share = self.shares(flat).diff(prepend=flat.new_zeros(1, dtype=torch.int64)).double()
        part = (share / UNIT).frac()  # of a row with more than 1, only this part is random
        relative = part * (1 - part) / (share / UNIT).square()
        return relative.to(flat.dtype) @ flat.square().sum(1)

    def noise(self, d: int) -> tuple[Noise, ...]:
        return (Rows(self),)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        rows, drawn = saved
        of_drawn = left.index_select(0, drawn)
        return by_columns(lambda left: widened_product(left, rows), of_drawn, shape[1])

    def nbytes(self, shape: Shape, dtype: torch.dtype) -> int:
        rows = len(rows_of(shape))
        k = self.kept(rows) if rows else 0
        return k * (shape[-1] * dtype.itemsize + torch.int32.itemsize)

    def shares(self, rows: Tensor) -> Tensor:
        """The running sums of the probabilities of rows (N, d), in 1/UNIT: int64, (N,)."""
        step = max(1, PIECE // max(1, rows.shape[1]))
        parts = [torch.linalg.vector_norm(r, dim=1, dtype=torch.float64) for r in rows.split(step)]
        weights = torch.cat(parts)
        finite = weights.isfinite()
        mean = weights.where(finite, 0).mean()
        largest = torch.where(mean > 0, mean / _LEAST, 1)
        weights.clamp_(min=mean * _LEAST).masked_fill_(finite.logical_not_(), largest)
        weights.masked_fill_(weights.sum() <= 0, 1)
        k = self.kept(len(rows))
        probability = weights.mul_(_scale(weights, k)).clamp_(max=1)
        sums = probability.cumsum_(0).mul_(UNIT).to(torch.int64).clamp_(max=k * UNIT)
        sums[-1:].fill_(k * UNIT)  # sums[-1] = ... would be a copy from the host
        return sums

    def weight_covariance(self, x: Tensor) -> Tensor:
        """Covariance of the factors that the rows of x (..., d) get in x_hat: (N, N), float64.

        Exact: between two neighbouring ends of shares, modulo 1, the drawn rows stay
        the same whatever u is.
        """
        rows = x.detach().reshape(-1, x.shape[-1])
        sums = self.shares(rows)
        share = sums.diff(prepend=sums.new_zeros(1)).double()
        starts = torch.cat([sums.new_zeros(1), sums % UNIT]).unique()
        lengths = torch.cat([starts, sums.new_full((1,), UNIT)]).diff().double()
        factors = torch.stack([_times_drawn(sums, start) for start in starts]) * (UNIT / share)
        deviations = factors.nan_to_num(0) - 1
        return deviations.t() @ (deviations * (lengths / UNIT)[:, None])

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        rows = x.detach().reshape(-1, x.shape[-1])
        if not len(rows):
            return rows.clone(), torch.empty(0, dtype=torch.int32, device=x.device)
        sums = self.shares(rows)
        start = words(key, range(1), 1)[0, 0] & (UNIT - 1)
        points = torch.arange(self.kept(len(rows)), device=x.device) * UNIT + start
        drawn = torch.searchsorted(sums, points, right=True)
        wide = accumulation_dtype(x.dtype)
        share = sums[drawn] - sums[(drawn - 1).clamp_(min=0)].where(drawn > 0, 0)
        factor = (UNIT / share.double()).to(wide)[:, None]
        parts = (
            cast(rows[drawn[here]].to(wide).mul_(factor[here]), x.dtype, key, KEPT, part)
            for part in pieces(range(len(drawn)), PIECE // max(1, rows.shape[1]))
            for here in [slice(part.start, part.stop)]
        )
        return joined(parts, len(drawn)), drawn.to(torch.int32)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        kept, drawn = saved
        wanted = rows_of(shape) if rows is None else rows
        place = drawn.to(torch.int64) - wanted.start
        outside = (place < 0) | (place >= len(wanted))
        x_hat = kept.new_zeros(len(wanted) + 1, shape[-1], dtype=accumulation_dtype(dtype))
        place = place.masked_fill(outside, len(wanted))[:, None].expand_as(kept)
        x_hat.scatter_add_(0, place, kept.to(x_hat.dtype))
        read = cast(x_hat[:-1], dtype, key, READ, rows)
        return read.reshape(shape if rows is None else (len(rows), shape[-1]))


def _scale(weights: Tensor, k: int) -> Tensor:
    """The c for which the sum of min(1, c w_n) is k: shape ()."""
    rising = weights.sort().values
    sums = rising.cumsum(0)
    # Number i is right if the rows that weigh more than row i are drawn for certain, and i is not.
    scales = torch.arange(k - len(weights) + 1, k + 1, dtype=sums.dtype, device=sums.device)
    fits = (scales.div_(sums) > 0) & (torch.mul(scales, rising, out=sums) <= 1)
    last = len(weights) - 1 - fits.flip(0).to(torch.uint8).argmax()
    return torch.where(fits.any(), scales.take(last), 1 / rising[0])


def _times_drawn(sums: Tensor, start: Tensor) -> Tensor:
    """How often each row is drawn by the points start, start + UNIT, ...: (N,)."""
    below = ((sums - start - 1) >> 32) + 1
    return below.diff(prepend=below.new_zeros(1))
