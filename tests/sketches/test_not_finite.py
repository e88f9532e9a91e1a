"""Which numbers one NaN or infinity turns, for every sketch: those and no others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
    fold_in,
    make_key,
)

ROWS, D = 4, 6
ROW, COLUMN = 1, 2
PLACES = torch.arange(ROWS * D).view(ROWS, D)
HADAMARD = torch.tensor([0, 0, 0, 0, 1, 1])  # 6 = 4 + 2: the parts of a row that are rotated
ITSELF = PLACES == ROW * D + COLUMN
ITS_ROW = ITSELF.any(1, keepdim=True).expand(ROWS, D)
Turned = Callable[[Tensor, Tensor], Tensor]
"""From the numbers and the key: which are not finite when read."""


def itself(x: Tensor, key: Tensor) -> Tensor:
    return ITSELF


def its_row(x: Tensor, key: Tensor) -> Tensor:
    return ITS_ROW


def its_row_but_zeros(x: Tensor, key: Tensor) -> Tensor:
    return ITS_ROW & (x != 0)


def its_block(size: int) -> Turned:
    return lambda x, key: sharing(ITSELF, PLACES // size)


def its_block_of_rotated(size: int) -> Turned:
    parts = torch.arange(ROWS)[:, None] * 2 + HADAMARD
    return lambda x, key: sharing(sharing(sharing(ITSELF, parts), PLACES // size), parts)


def sharing(turned: Tensor, groups: Tensor) -> Tensor:
    """All numbers of the groups that hold one of those."""
    return torch.isin(groups, groups[turned])


def where_drawn(sketch: SameSample | DifferentSample) -> Turned:
    return lambda x, key: drawn(sketch.indices(x.shape, key)) & ITSELF


def drawn_of_its_row(sketch: SampledRounding) -> Turned:
    return lambda x, key: drawn(sketch.sample.indices(x.shape, fold_in(key, 0))) & ITS_ROW


def drawn(indices: Tensor) -> Tensor:
    return torch.zeros(ROWS, D, dtype=torch.bool).scatter(1, indices.expand(ROWS, -1), True)


CASES: list[tuple[Sketch, Turned]] = [
    (Identity(), itself),
    (StochasticRounding(3), its_row),
    (StochasticRounding(3, block=4), its_block(4)),
    (StochasticRounding(2, block=9), its_block(9)),
    (StochasticRounding(8, block=1), itself),
    (StochasticRounding(3, zero_code=True), its_row_but_zeros),
    (DitheredRounding(2), its_row),
    (DitheredRounding(3, block=4), its_block(4)),
    (DitheredRounding(3, block=100), its_block(100)),
    (DitheredRounding(3, zero_code=True), its_row_but_zeros),
    (RotatedRounding(3), its_row),
    (RotatedRounding(3, block=4), its_block_of_rotated(4)),
    (RotatedRounding(2, block=9, dithered=False), its_block_of_rotated(9)),
    (SampledRounding(0.5, 3), drawn_of_its_row(SampledRounding(0.5, 3))),
    (SampledRounding(0.5, 2, False), drawn_of_its_row(SampledRounding(0.5, 2, False))),
    (SameSample(0.5), where_drawn(SameSample(0.5))),
    (SameSample(0.5, False), where_drawn(SameSample(0.5, False))),
    (DifferentSample(0.5), where_drawn(DifferentSample(0.5))),
    (DifferentSample(0.5, False), where_drawn(DifferentSample(0.5, False))),
    (Project(0.5), its_row),
    (DifferentProject(0.5), its_row),
    (ImportanceSampling(0.5), itself),
    (PrincipalProject(0.7, 0.8), its_row),
]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("sketch", "turned"), CASES, ids=[str(case[0]) for case in CASES])
def test_those_and_no_others(
    sketch: Sketch, turned: Turned, dtype: torch.dtype, poison: float
) -> None:
    torch.manual_seed(0)
    for seed in range(10):
        x, key = torch.rand(ROWS, D).to(dtype) + 0.5, make_key(seed)
        x[ROW, 4], x[0, 1] = 0, 0
        assert sketch.decompress(sketch.compress(x, key), x.shape, dtype, key).isfinite().all()
        x[ROW, COLUMN] = poison
        x_hat = sketch.decompress(sketch.compress(x, key), x.shape, dtype, key)
        assert torch.equal(~x_hat.isfinite(), turned(x, key))
