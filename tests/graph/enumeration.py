"""Exact expectations and variances of path sampling, over all of its outcomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rad.graph as rg
from rad.graph import LinearizedGraph, Sampler


def moments(graph: LinearizedGraph, sampler: Any) -> tuple[float, Tensor, Tensor]:
    """Total probability, mean and variance of the Jacobian, by enumeration."""
    total, mean = 0.0, torch.zeros(len(graph.outputs), len(graph.inputs), dtype=torch.float64)
    square = mean.clone()
    exact = rg.reverse_accumulation(graph)
    for probability, sparse in rg.outcomes(graph, sampler):
        jacobian = rg.reverse_accumulation(sparse)
        total += probability
        mean += probability * jacobian
        square += probability * (jacobian - exact).square()
    return total, mean, square


def check_expectation(graph: LinearizedGraph, sampler: Any) -> None:
    total, mean, square = moments(graph, sampler)
    exact = rg.reverse_accumulation(graph)
    assert total == pytest.approx(1, rel=1e-12)
    assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    assert_close(rg.variance(graph, sampler), square, rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class OutcomesOnly(Sampler):
    """A sampler that defines nothing but its outcomes."""

    sampler: Sampler

    def outcomes(self, derivatives: Sequence[float]) -> Iterator[tuple[float, dict[int, float]]]:
        yield from self.sampler.outcomes(derivatives)
