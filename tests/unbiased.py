"""The one statistical test of unbiasedness, with fixed n and known power."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from rad.sketches import fold_in, make_key

CHECKS = logging.getLogger("unbiased")
"""Is told of each check; `tests/conftest.py` adds them up."""

LEVEL = 1e-7
POWER = 0.99
BIAS = 0.05
"""The pooled statistic rejects an estimator scaled by 1 + BIAS with at least this POWER."""


def draws(estimate: Callable[[Tensor], Tensor], n: int, seed: int = 0) -> Tensor:
    """n draws of `estimate(key)` with independent keys: (n, ...)."""
    keys = fold_in(make_key(seed), torch.arange(n))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return torch.vmap(estimate, chunk_size=20_000)(keys)


def check_unbiased(samples: Tensor, truth: Tensor, *, is_control: bool = False) -> None:
    """Fail unless the mean of the samples (n, ...) can be `truth` (...).

    Two-sided z-tests of every coordinate and of the pooled statistic <sample, truth>
    / |truth|^2 (expected: 1), Bonferroni over all of them at level 1e-7. Coordinates
    without variance must equal the truth to rounding. Also fails where n is too small
    for the pooled statistic to catch a bias of 5% with power 0.99. Of a single coordinate the
    smallest bias that is caught so is `smallest_biases`: about sqrt(m) times the pooled one among
    m alike, so 17% among 12 where the pooled one is just 5%. A control, which must fail, is no
    check of the suite.
    """
    n = len(samples)
    flat = samples.reshape(n, -1).double()
    true = truth.reshape(-1).double()
    critical = _critical(true.numel())

    pooled = flat @ true / true.square().sum()
    spread = pooled.std().item() / math.sqrt(n)
    needed = spread * (critical + NormalDist().inv_cdf(POWER))
    power = NormalDist().cdf(BIAS / spread - critical) if spread else 1.0
    if not is_control:
        CHECKS.debug("unbiased", extra={"power": power})
    assert needed <= BIAS, f"n={n} is too small: the smallest bias caught is {needed:.3f}"
    rounding = 1e-9 if samples.dtype == torch.float64 else 1e-5
    error = abs(pooled.mean().item() - 1)
    assert error <= critical * spread + rounding, f"pooled mean is off by {error:.4f}"

    deviation = (flat.mean(0) - true).abs()
    allowed = critical * flat.std(0) / math.sqrt(n) + rounding * true.abs().max()
    worst = (deviation - allowed).argmax()
    assert (deviation <= allowed).all(), (
        f"coordinate {int(worst)} is off by {deviation[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )


def _critical(coordinates: int) -> float:
    """How many standard errors are allowed, so that all tests together have the level."""
    return NormalDist().inv_cdf(1 - LEVEL / 2 / (coordinates + 1))


def smallest_biases(samples: Tensor, truth: Tensor) -> Tensor:
    """Relative to each coordinate of the truth, the bias of it alone that is caught with POWER.

    Infinite where there is no variance, or nothing to be relative to.
    """
    flat, true = samples.reshape(len(samples), -1).double(), truth.reshape(-1).double()
    errors = flat.std(0) / math.sqrt(len(samples))
    biases = (_critical(true.numel()) + NormalDist().inv_cdf(POWER)) * errors / true.abs()
    return biases.where((errors > 0) & (true != 0), math.inf)


def check_biased_is_caught(samples: Tensor, truth: Tensor) -> None:
    """Fail unless the same samples, scaled by 1 + BIAS, are rejected: the negative control."""
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples * (1 + BIAS), truth, is_control=True)


def check_one_biased_is_caught(samples: Tensor, truth: Tensor) -> None:
    """Fail unless a bias of 5% in one coordinate alone is caught, and with POWER: in the one that
    has the least noise for its size."""
    biases = smallest_biases(samples, truth)
    one = biases.argmin()
    assert biases[one] <= BIAS, f"the smallest bias caught of one coordinate is {biases[one]:.3f}"
    flat = samples.reshape(len(samples), -1).clone()
    flat[:, one] *= 1 + BIAS
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(flat, truth.reshape(-1), is_control=True)


def check_mean_square(samples: Tensor, truth: Tensor, expected: float) -> None:
    """Fail unless E |sample - truth|^2 can be `expected`: a z-test at level 1e-7.

    Also fails where the test could not tell `expected` from a value 10% away.
    """
    squares = (samples - truth).reshape(len(samples), -1).double().square().sum(1)
    spread = squares.std().item() / math.sqrt(len(samples))
    critical = NormalDist().inv_cdf(1 - LEVEL / 2)
    CHECKS.debug("variance", extra={"power": None})
    assert critical * spread <= 0.1 * expected, "n is too small"
    error = abs(squares.mean().item() - expected)
    assert error <= critical * spread, f"mean {squares.mean():.5g}, expected {expected:.5g}"
