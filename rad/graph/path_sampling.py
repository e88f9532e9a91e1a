"""Path sampling: a single sweep turns a linearized graph into a sparse random one (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from rad.draws.reference import fold_in
from rad.errors import UsageError
from rad.graph.linearized import Edge, LinearizedGraph
from rad.graph.samplers import Sampler, Weights

Samplers = Sampler | Mapping[int, Sampler]
"""One sampler for every vertex, or samplers for some: the outgoing edges of the others are kept."""


def sample(graph: LinearizedGraph, sampler: Samplers, key: Tensor) -> LinearizedGraph:
    """A sparse linearized graph, on which reverse accumulation gives an unbiased Jacobian.

    Starts at the inputs and draws, at every vertex reached, outgoing edges and their weights.
    Draws at different vertices are independent (vertex v has the key fold_in(key, v)), so that the
    expected weight of a path is the product of its derivatives. What is remembered is
    len(result.edges); for samplers that look only at the edges they draw, time is linear in that,
    once the first call has grouped the graph's edges by vertex.
    """

    def choose(vertex: int, derivatives: Sequence[float]) -> Weights:
        at_vertex = sampler_at(sampler, vertex)
        if at_vertex is None:
            return dict(enumerate(derivatives))
        return at_vertex.draw(derivatives, fold_in(key, vertex))

    return _sweep(graph, choose)


def outcomes(
    graph: LinearizedGraph, sampler: Samplers, most: int = 100_000
) -> Iterator[tuple[float, LinearizedGraph]]:
    """Every sparse graph that `sample` can return, with its probability: for small graphs.

    Runs the sweep again and again, each time with the next combination of the vertices' outcomes;
    the choices of a sweep are the digits of a counter.

    Raises:
        UsageError: there are more than `most`.
    """
    digits: list[int] = []
    for _ in range(most):
        bases: list[int] = []
        probability = 1.0

        def choose(vertex: int, derivatives: Sequence[float], bases: list[int] = bases) -> Weights:
            nonlocal probability
            at_vertex = sampler_at(sampler, vertex)
            exact = [(1.0, dict(enumerate(derivatives)))]
            options = exact if at_vertex is None else list(at_vertex.outcomes(derivatives))
            if len(bases) == len(digits):
                digits.append(0)
            chance, weights = options[digits[len(bases)]]
            bases.append(len(options))
            probability *= chance
            return weights

        sparse = _sweep(graph, choose)
        yield probability, sparse
        while digits and digits[-1] + 1 == bases[len(digits) - 1]:
            digits.pop()
        if not digits:
            return
        digits[-1] += 1
    raise UsageError(f"more than {most} outcomes; take a smaller graph, or variance()")


def sampler_at(sampler: Samplers, vertex: int) -> Sampler | None:
    """The sampler of a vertex; None where its outgoing edges are all kept."""
    return sampler if isinstance(sampler, Sampler) else sampler.get(vertex)


def _sweep(
    graph: LinearizedGraph, choose: Callable[[int, Sequence[float]], Weights]
) -> LinearizedGraph:
    """The edges chosen at every vertex that is reached; each vertex is visited once.

    Depth first: a vertex is left after everything that it reaches, so that the opposite of the
    order of leaving is topological. No work is done for vertices that are not reached.
    """
    kept: dict[int, list[Edge]] = {}
    left: list[int] = []
    waiting = [(vertex, False) for vertex in graph.inputs]
    while waiting:
        vertex, leaving = waiting.pop()
        if leaving:
            left.append(vertex)
        elif vertex not in kept:
            edges = graph.out_edges.get(vertex, ())
            weights = choose(vertex, graph.out_derivatives[vertex]) if edges else {}
            kept[vertex] = [Edge(vertex, edges[slot].target, w) for slot, w in weights.items()]
            waiting.append((vertex, True))
            waiting.extend((edge.target, False) for edge in kept[vertex])
    sparse = tuple(edge for vertex in reversed(left) for edge in kept[vertex])
    return LinearizedGraph(graph.names, sparse, graph.inputs, graph.outputs)
