"""Random linearized graphs, and the samplers that are tried on them."""

from collections.abc import Callable
from math import prod

from hypothesis import settings
from hypothesis import strategies as st

from rad.graph import Edge, LinearizedGraph, Proportional, Sampler, Uniform

SAMPLERS: dict[str, Sampler] = {
    "uniform 1": Uniform(1),
    "uniform 2": Uniform(2),
    "distinct 1": Uniform(1, replacement=False),
    "distinct 2": Uniform(2, replacement=False),
    "proportional 1": Proportional(1),
    "proportional 2": Proportional(2),
}
MOST_OUTCOMES = 400

few = settings(derandomize=True, deadline=None, max_examples=20)
many = settings(derandomize=True, deadline=None, max_examples=80)


def two_of(m: int) -> int:
    """In how many ways two of m are drawn with replacement."""
    return m * (m + 1) // 2


@st.composite
def dags(
    draw: st.DrawFn, *, enumerable: bool = False, options: Callable[[int], int] = two_of
) -> LinearizedGraph:
    """Up to 12 vertices and 24 edges: several inputs (some unused, some fed by others), several
    outputs (some constant, some twice), parallel edges, derivatives of 0.

    With `enumerable`, edges that would give path sampling more than MOST_OUTCOMES are left out,
    where a vertex with m outgoing edges has `options(m)`.
    """
    count = draw(st.integers(1, 12))
    vertex = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(vertex, vertex), max_size=24))
    derivative = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1.5, 1.5))
    degrees = dict.fromkeys(range(count), 0)
    edges = []
    for a, b in sorted((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]):
        degrees[a] += 1
        if enumerable and prod(options(m) for m in degrees.values() if m) > MOST_OUTCOMES:
            degrees[a] -= 1
            continue
        edges.append(Edge(a, b, draw(derivative)))
    inputs = draw(st.lists(vertex, min_size=1, max_size=3, unique=True))
    outputs = draw(st.lists(vertex, min_size=1, max_size=3))
    names = tuple(f"v{i}" for i in range(count))
    return LinearizedGraph(names, tuple(edges), tuple(inputs), tuple(outputs))
