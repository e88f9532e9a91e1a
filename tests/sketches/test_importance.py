"""Importance sampling: exact expectations, over every interval of its one uniform draw."""

import math

import pytest
import torch
from torch import Tensor

from rad.memory import peak_bytes
from rad.sketches import ImportanceSampling, make_key
from rad.sketches.importance import UNIT, _times_drawn

NORMS = [
    [1.0, 2.0, 0.5, 3.0, 1.0],
    [1e6, 1.0, 2.0, 3.0, 1e-3],
    [0.0, 0.0, 1.0, 2.0, 0.0],
    [0.0] * 5,
    [1e-30, 1e30, 1e29, 1.0, 1e30],
]
every_norms = pytest.mark.parametrize("norms", NORMS, ids=str)
every_fraction = pytest.mark.parametrize("fraction", [0.1, 0.4, 0.7, 1.0])


def matrix(norms: list[float]) -> Tensor:
    torch.manual_seed(0)
    directions = torch.randn(len(norms), 6, dtype=torch.float64)
    return directions / directions.norm(dim=1, keepdim=True) * torch.tensor(norms)[:, None]


@every_norms
@every_fraction
def test_shares_are_the_expected_counts_exactly(norms: list[float], fraction: float) -> None:
    sketch, x = ImportanceSampling(fraction), matrix(norms)
    sums = sketch.shares(x)
    share = sums.diff(prepend=sums.new_zeros(1))
    assert sums[-1] == sketch.kept(5) * UNIT
    assert (share >= 0).all()
    assert (share[x.norm(dim=1) > 1e-12 * x.norm(dim=1).mean()] > 0).all()
    starts = torch.cat([sums.new_zeros(1), sums % UNIT]).unique()
    lengths = torch.cat([starts, sums.new_full((1,), UNIT)]).diff()
    drawn = torch.stack([_times_drawn(sums, start) for start in starts])
    assert (drawn.sum(1) == sketch.kept(5)).all()
    assert torch.equal((drawn * lengths[:, None]).sum(0), share)


@every_fraction
def test_probabilities_follow_the_norms_up_to_certainty(fraction: float) -> None:
    sketch, x = ImportanceSampling(fraction), matrix(NORMS[0])
    probability = sketch.shares(x).diff(prepend=torch.zeros(1, dtype=torch.int64)) / UNIT
    ratio = probability / torch.tensor(NORMS[0])
    uncertain = probability < 0.999999
    assert (probability <= 1 + 1e-9).all()
    if uncertain.any():
        torch.testing.assert_close(ratio[uncertain], ratio[uncertain].max().expand(uncertain.sum()))
        assert (ratio[~uncertain] <= ratio[uncertain].max()).all()


def test_the_covariance_has_the_stated_variances() -> None:
    sketch, x = ImportanceSampling(0.4), matrix(NORMS[0])
    covariance = sketch.weight_covariance(x)
    torch.testing.assert_close(covariance, covariance.t())
    torch.testing.assert_close(covariance.diagonal() @ x.square().sum(1), sketch.variance(x))


def test_all_rows_are_exact_and_the_certain_ones_always() -> None:
    x = matrix(NORMS[1])
    for seed in range(10):
        kept, rows = ImportanceSampling(1.0).compress(x, make_key(seed))
        assert rows.tolist() == list(range(5))
        torch.testing.assert_close(kept, x)
        kept, rows = ImportanceSampling(0.4).compress(x, make_key(seed))
        assert rows[0] == 0
        torch.testing.assert_close(kept[0], x[0])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_is_always_kept(poison: float) -> None:
    x, sketch = matrix(NORMS[0]), ImportanceSampling(0.2)
    x[2, 3] = poison
    for seed in range(10):
        kept = sketch.compress(x, make_key(seed))
        x_hat = sketch.decompress(kept, x.shape, x.dtype, make_key(seed))
        assert not x_hat[2, 3].isfinite()


def test_empty() -> None:
    sketch, x = ImportanceSampling(0.5), torch.zeros(0, 7)
    kept = sketch.compress(x, make_key(0))
    assert sum(t.nbytes for t in kept) == sketch.nbytes(x.shape, x.dtype) == 0
    assert sketch.decompress(kept, x.shape, x.dtype, make_key(0)).shape == (0, 7)
    assert sketch.variance(x) == 0


def test_its_relative_variance_is_no_number() -> None:
    with pytest.raises(TypeError, match="depends on x"):
        ImportanceSampling(0.5).relative_variance(3)


def test_choosing_among_many_rows_takes_few_bytes_for_each() -> None:
    """Five numbers of eight bytes a row and a half, beside what is kept and one piece."""
    x, sketch = torch.randn(1 << 16, 4), ImportanceSampling(0.02)
    kept = sketch.nbytes(tuple(x.shape), x.dtype)
    assert peak_bytes(lambda: sketch.compress(x, make_key(0))) <= 44 * len(x) + kept + (1 << 16)
