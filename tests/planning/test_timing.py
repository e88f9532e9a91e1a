"""Ratios of times, and how well they are known."""

import numpy as np
import pytest

from rad.planning.timing import error_of_ratio, ratio_of_medians


def test_the_error_is_that_of_many_repetitions() -> None:
    """Over 2,000 benchmarks of 25 rounds, whose common drift cancels."""
    generator = np.random.default_rng(3)
    ratios, errors = [], []
    for _ in range(2000):
        drift = 1 + 0.5 * generator.random()
        reference = drift * (1 + 0.1 * generator.standard_normal(25))
        seconds = drift * (2 + 0.2 * generator.standard_normal(25))
        ratios.append(ratio_of_medians(list(seconds), list(reference)))
        if len(errors) < 100:
            errors.append(error_of_ratio(list(seconds), list(reference)))
    true = np.std(ratios) / np.mean(ratios)
    assert np.mean(errors) == pytest.approx(true, rel=0.15)
    assert true == pytest.approx(0.035, rel=0.1)


def test_programs_that_drift_together_have_a_ratio_without_error() -> None:
    reference = [1.0, 2.0, 4.0, 3.0, 2.5]
    assert error_of_ratio([2 * t for t in reference], reference) == pytest.approx(0, abs=1e-12)
