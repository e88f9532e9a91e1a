import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
import torch
from graph.dags import SAMPLERS, dags, few
from graph.enumeration import OutcomesOnly, check_expectation
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close
from unbiased import check_biased_is_caught, check_mean_square, check_unbiased

import rad.graph as rg
from rad.errors import UsageError
from rad.graph import Edge, LinearizedGraph, Proportional, Sampler, Uniform
from rad.graph.layered import independent_paths, interleaved, relative_variance
from rad.sketches import fold_in, make_key

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@every_sampler
@few
@given(graph=dags(enumerable=True))
def test_expectation_and_variance_over_all_outcomes(
    graph: LinearizedGraph, sampler: Sampler
) -> None:
    check_expectation(graph, sampler)


@few
@given(graph=dags(enumerable=True))
def test_samplers_at_some_vertices(graph: LinearizedGraph) -> None:
    check_expectation(graph, {0: Uniform(1), 2: Proportional(2), 3: Uniform(2, replacement=False)})


@dataclass(frozen=True)
class Overweight(Sampler):
    """Biased: one edge in a million has a weight that is 0.1 too large."""

    sampler: Sampler

    def outcomes(self, derivatives: Sequence[float]) -> Iterator[tuple[float, dict[int, float]]]:
        for probability, weights in self.sampler.outcomes(derivatives):
            yield probability * (1 - 1e-6), weights
            yield probability * 1e-6, {slot: weight + 0.1 for slot, weight in weights.items()}


@every_sampler
def test_a_wrong_weight_is_caught(sampler: Sampler) -> None:
    edges = (Edge(0, 1, 0.5), Edge(0, 2, 2.0), Edge(1, 3, 1.5), Edge(2, 3, -1.0))
    graph = LinearizedGraph(("x", "a", "b", "y"), edges, (0,), (3,))
    check_expectation(graph, sampler)
    with pytest.raises(AssertionError, match="not close"):
        check_expectation(graph, Overweight(sampler))


@pytest.mark.parametrize(
    "sampler",
    [Uniform(2), Uniform(3, replacement=False), Proportional(2), OutcomesOnly(Uniform(2))],
    ids=["uniform", "distinct", "proportional", "default"],
)
def test_draws_have_the_mean_and_the_variance_of_the_outcomes(sampler: Sampler) -> None:
    derivatives = (1.0, -0.8, 0.5, 0.9)
    samples = torch.zeros(2800, len(derivatives), dtype=torch.float64)
    for row in range(len(samples)):
        for slot, weight in sampler.draw(derivatives, fold_in(make_key(7), row)).items():
            samples[row, slot] = weight
    truth = torch.tensor(derivatives, dtype=torch.float64)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    check_mean_square(samples, truth, sampler.covariance(derivatives).trace().item())


@every_sampler
@few
@given(graph=dags())
def test_closed_form_covariances_are_those_of_the_outcomes(
    graph: LinearizedGraph, sampler: Sampler
) -> None:
    for derivatives in graph.out_derivatives.values():
        if len(derivatives) <= 6:
            of_outcomes = OutcomesOnly(sampler).covariance(derivatives)
            assert_close(sampler.covariance(derivatives), of_outcomes, rtol=1e-12, atol=1e-12)


@every_sampler
@few
@given(graph=dags())
def test_a_sample_is_what_its_key_says(graph: LinearizedGraph, sampler: Sampler) -> None:
    key = make_key(3)
    sparse = rg.sample(graph, sampler, key)
    assert sparse == rg.sample(graph, sampler, key)
    of_source = Counter(edge.source for edge in sparse.edges)
    assert max(of_source.values(), default=0) <= 2
    reached = {*graph.inputs, *(edge.target for edge in sparse.edges)}
    for vertex, derivatives in graph.out_derivatives.items():
        kept = [(e.target, e.derivative) for e in sparse.edges if e.source == vertex]
        weights = sampler.draw(derivatives, fold_in(key, vertex)) if vertex in reached else {}
        targets = [edge.target for edge in graph.out_edges[vertex]]
        assert kept == [(targets[slot], weight) for slot, weight in weights.items()]


@dataclass(frozen=True)
class Counting(Sampler):
    """Keeps the first two edges, and counts the vertices at which it does."""

    calls: list[int]

    def outcomes(self, derivatives: Sequence[float]) -> Iterator[tuple[float, dict[int, float]]]:
        yield 1.0, {0: derivatives[0], 1: derivatives[1]}

    def draw(self, derivatives: Sequence[float], key: Tensor) -> dict[int, float]:
        self.calls.append(len(derivatives))
        return {slot: derivatives[slot] for slot in range(min(2, len(derivatives)))}


def bytecodes(call: Callable[[], object]) -> int:
    """How many bytecode instructions rad/graph executes in the call."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if "rad/graph/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_sweep_visits_kept_vertices_once_and_its_cost_is_linear_in_the_edges_kept() -> None:
    def cost(width: int, depth: int) -> tuple[int, int, int]:
        graph = interleaved(width, depth, make_key(0))
        calls: list[int] = []
        graph = LinearizedGraph(graph.names, graph.edges, (0,), graph.outputs)
        rg.sample(graph, Counting(calls), make_key(0))  # fills the caches of the graph
        calls.clear()
        kept: list[LinearizedGraph] = []
        count = bytecodes(lambda: kept.append(rg.sample(graph, Counting(calls), make_key(0))))
        sources = {edge.source for edge in kept[0].edges}
        assert len(calls) == len(sources)
        return len(kept[0].edges), len(graph.edges), count

    small, medium, large = cost(4, 20), cost(16, 20), cost(16, 40)
    assert small[0] == medium[0]
    assert medium[1] > 10 * small[1]
    assert small[2] == medium[2]
    per_edge = small[2] / small[0]
    assert per_edge < 300
    assert large[2] / large[0] == pytest.approx(per_edge, rel=0.05)


@pytest.mark.parametrize(("width", "k"), [(2, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_figure_2_in_closed_form(width: int, k: int, depth: int) -> None:
    key = make_key(depth)
    for build, injections in ((interleaved, depth), (independent_paths, 1)):
        graph = build(width, depth, key)
        norm = rg.reverse_accumulation(graph).square().sum()
        relative = (rg.variance(graph, Uniform(k)).sum() / norm).item()
        assert relative == pytest.approx(relative_variance(width, k, injections), rel=1e-10)
        distinct = (rg.variance(graph, Uniform(k, replacement=False)).sum() / norm).item()
        assert distinct == pytest.approx((width / k) ** injections - 1, rel=1e-10)


def test_bad_samplers_and_graphs_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Uniform(0)
    with pytest.raises(UsageError, match="power of 2"):
        interleaved(6, 2, make_key(0))
    graph = interleaved(8, 3, make_key(0))
    with pytest.raises(UsageError, match="outcomes"):
        list(rg.outcomes(graph, Uniform(1), most=50))
    exactly = list(rg.outcomes(interleaved(2, 1, make_key(0)), Uniform(1), most=4))
    assert len(exactly) == 4
