"""Casts to bfloat16 and float16: their expectation over all draws, and where sketches take them."""

from __future__ import annotations

import math

import pytest
import torch
from cases import LOSSY
from torch import Tensor
from unbiased import check_biased_is_caught, check_unbiased, draws

from rad.draws import casts
from rad.draws.casts import cast, cast_at_random
from rad.draws.reference import KEPT, READ, step_keys
from rad.sketches import (
    DifferentProject,
    DitheredRounding,
    ImportanceSampling,
    Project,
    RotatedRounding,
    SampledRounding,
    Sketch,
    StochasticRounding,
    make_key,
)

SHORT = [torch.bfloat16, torch.float16]
ALL = 1 << 16
NUMBERS = [1.001, -1 / 3, 5.0, 0.0, -0.0, 300.7, 1e-5, -3e-8, 7e-9, 6.1e-5, 65_000.1, -1e-2]
every_short = pytest.mark.parametrize("dtype", SHORT, ids=str)


@pytest.fixture
def all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row i of ALL rows draws i."""
    monkeypatch.setattr(
        casts,
        "_lanes",
        lambda key, rows, slots: torch.arange(rows.start, rows.stop, dtype=torch.int32)[
            :, None
        ].expand(-1, slots),
    )


def spread(numbers: list[float], dtype: torch.dtype) -> Tensor:
    """The casts of the numbers by all draws: (ALL, n)."""
    x = torch.tensor(numbers).expand(ALL, -1)
    return cast_at_random(x, dtype, make_key(0))


@pytest.mark.usefixtures("all_draws")
@every_short
def test_the_average_over_all_draws_is_exact(dtype: torch.dtype) -> None:
    numbers = [*NUMBERS, 1e-39, -2e-40, 3e38] if dtype == torch.bfloat16 else NUMBERS
    found, x = spread(numbers, dtype).double(), torch.tensor(numbers).double()
    # A sixty-thousandth of a unit below float16's smallest normal number, else to the last bit.
    unit = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    allowed = unit / ALL if dtype == torch.float16 else 0
    assert ((found.mean(0) - x).abs() <= allowed).all()
    apart = (found.amax(0) - found.amin(0)) <= x.abs() * torch.finfo(dtype).eps + unit
    assert apart.all()


@pytest.mark.usefixtures("all_draws")
@every_short
def test_what_the_type_holds_stays_and_what_it_does_not_is_as_in_torch(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    holds = [0.0, -1.5, largest, -largest, torch.finfo(dtype).tiny, math.inf, -math.inf, math.nan]
    found = spread(holds, dtype)
    torch.testing.assert_close(found, torch.tensor(holds).to(dtype).expand(ALL, -1), equal_nan=True)
    beyond = largest * (1 + torch.finfo(dtype).eps / 8)
    assert (spread([beyond, -beyond], dtype).abs() == largest).all()
    if dtype == torch.float16:
        assert spread([70_000.0], dtype).isposinf().all()


def test_other_types_are_cast_as_in_torch() -> None:
    x, key = torch.randn(3, 5), make_key(0)
    assert cast(x, torch.float32, key, READ) is x
    assert torch.equal(cast(x, torch.float64, key, READ), x.double())
    assert cast(torch.ones(0, 5), torch.bfloat16, key, READ).shape == (0, 5)


@every_short
@pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
def test_what_is_read_is_cast_at_random(sketch: Sketch, dtype: torch.dtype) -> None:
    x, key = torch.randn(4, 3, 40).to(dtype), make_key(2)
    kept = sketch.compress(x, key)
    assert sum(t.untyped_storage().nbytes() for t in kept) == sketch.nbytes(x.shape, dtype)
    wide = sketch.decompress(kept, x.shape, torch.float32, key)
    short = sketch.decompress(kept, x.shape, dtype, key)
    assert torch.equal(short, cast(wide, dtype, key, READ))
    part = sketch.decompress(kept, x.shape, dtype, key, range(5, 9))
    torch.testing.assert_close(part, short.view(12, 40)[5:9])


@every_short
@pytest.mark.parametrize("sketch", [Project(0.3), DifferentProject(0.3), ImportanceSampling(0.4)])
def test_what_is_kept_is_cast_at_random(sketch: Sketch, dtype: torch.dtype) -> None:
    x, keys = torch.randn(2, 5, 40).to(dtype), step_keys(make_key(2), 2)
    kept = [sketch.compress(x_s, key)[0] for x_s, key in zip(x, keys, strict=True)]
    for x_s, key, got in zip(x, keys, kept, strict=True):
        wide = sketch.compress(x_s.float(), key)[0]
        assert torch.equal(got, cast(wide, dtype, key, KEPT))
        assert not torch.equal(got, wide.to(dtype))
    steps = sketch.compress_steps(x, keys)[0]
    torch.testing.assert_close(steps, torch.stack(kept))


@every_short
@pytest.mark.parametrize(
    "sketch",
    [
        StochasticRounding(8),
        DitheredRounding(8, block=5),
        RotatedRounding(8),
        SampledRounding(1.0, 8),
    ],
    ids=str,
)
def test_short_estimates_are_unbiased(sketch: Sketch, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5).to(dtype)
    samples = draws(lambda k: sketch.decompress(sketch.compress(x, k), x.shape, dtype, k), 20_000)
    check_unbiased(samples, x)
    check_biased_is_caught(samples, x)
