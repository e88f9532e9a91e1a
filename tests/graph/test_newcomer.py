"""The sampler that the documentation shows is 20 lines long and works."""

import re
import textwrap
from typing import Any

import torch
from graph.dags import dags, few
from graph.enumeration import OutcomesOnly, check_expectation
from hypothesis import given
from torch.testing import assert_close
from unbiased import check_biased_is_caught, check_mean_square, check_unbiased

from rad.graph import LinearizedGraph, Sampler, samplers
from rad.sketches import fold_in, make_key

EXAMPLE = textwrap.dedent(re.findall(r"(?:^(?: {4}.*)?\n)+", samplers.__doc__ or "", re.M)[-1])


def example() -> Any:
    names: dict[str, Any] = {}
    exec(compile(EXAMPLE, "example", "exec"), names)
    return names["Coins"]


def test_it_is_short() -> None:
    assert 10 < len([line for line in EXAMPLE.splitlines() if line]) <= 20


@few
@given(graph=dags(enumerable=True, options=lambda m: 2**m))
def test_its_expectation_and_variance(graph: LinearizedGraph) -> None:
    check_expectation(graph, example()(0.4))


def test_its_draws() -> None:
    sampler: Sampler = example()(0.8)
    derivatives = (1.0, -0.8, 0.5, 0.9)
    samples = torch.zeros(2800, len(derivatives), dtype=torch.float64)
    for row in range(len(samples)):
        for slot, weight in sampler.draw(derivatives, fold_in(make_key(7), row)).items():
            samples[row, slot] = weight
    truth = torch.tensor(derivatives, dtype=torch.float64)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    covariance = OutcomesOnly(sampler).covariance(derivatives)
    assert_close(covariance, torch.diag(truth.square() * (1 / 0.8 - 1)), rtol=1e-12, atol=1e-12)
    check_mean_square(samples, truth, covariance.trace().item())
