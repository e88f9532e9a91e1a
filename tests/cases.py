"""The sketches that every contract and operator test runs over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.draws.selectors import Selectors
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    DitheredRounding,
    Identity,
    ImportanceSampling,
    PrincipalProject,
    Project,
    RotatedRounding,
    SameSample,
    SampledRounding,
    Sketch,
    StochasticRounding,
)
from rad.sketches.base import Shape


@dataclass(frozen=True)
class HalvedSample(DifferentSample):
    """Keeps half of what its parent keeps: the same sketch with other factors in its selectors."""

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (super().compress(x, key)[0] / 2,)

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        return super().decompress((saved[0] * 2,), shape, dtype, key, rows)

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        return super().contract(left, (saved[0] * 2,), shape, key)

    def selectors(self, d: int) -> Selectors:
        selectors = super().selectors(d)
        return selectors._replace(encode=0.5, decode=2 * selectors.decode)


LOSSY: dict[str, Sketch] = {
    "same_sample": SameSample(0.3),
    "same_sample_distinct": SameSample(0.3, replacement=False),
    "same_sample_distinct_most": SameSample(0.8, replacement=False),
    "different_sample": DifferentSample(0.3),
    "different_sample_distinct": DifferentSample(0.3, replacement=False),
    "different_sample_distinct_most": DifferentSample(0.8, replacement=False),
    "project": Project(0.3),
    "different_project": DifferentProject(0.3),
    "stochastic_rounding": StochasticRounding(3),
    "stochastic_rounding_blocks": StochasticRounding(2, block=5),
    "dithered_rounding": DitheredRounding(2),
    "dithered_rounding_zero_code": DitheredRounding(2, zero_code=True),
    "rotated_rounding": RotatedRounding(3),
    "rotated_stochastic_rounding": RotatedRounding(2, dithered=False),
    "sampled_rounding": SampledRounding(0.5, 3),
    "importance_sampling": ImportanceSampling(0.4),
    "principal_project": PrincipalProject(0.7, 0.7),
}
SKETCHES: dict[str, Sketch] = {"identity": Identity(), **LOSSY}
