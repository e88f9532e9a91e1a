from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph.dags import dags, many
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import rad.graph as rg
from rad.errors import UsageError
from rad.graph import Edge, LinearizedGraph
from rad.graph.layered import interleaved
from rad.sketches import make_key

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


@many
@given(dags())
def test_three_methods_agree(graph: LinearizedGraph) -> None:
    by_paths = rg.path_sum(graph)
    assert_close(rg.forward_accumulation(graph), by_paths, **EXACT)
    assert_close(rg.reverse_accumulation(graph), by_paths, **EXACT)


@many
@given(dags())
def test_paths_are_counted_as_they_are_enumerated(graph: LinearizedGraph) -> None:
    for source in graph.inputs:
        for target in graph.outputs:
            paths = list(rg.bauer_paths(graph, source, target))
            assert len(paths) == rg.count_paths(graph, source, target)
            ends = [(path[0].source, path[-1].target) for path in paths if path]
            assert set(ends) <= {(source, target)}


@many
@given(dags())
def test_the_transposed_graph_has_the_transposed_jacobian(graph: LinearizedGraph) -> None:
    if len(set(graph.outputs)) < len(graph.outputs):
        with pytest.raises(UsageError, match="twice"):
            graph.transposed()
        return
    transposed = rg.reverse_accumulation(graph.transposed())
    assert_close(transposed.t(), rg.reverse_accumulation(graph), **EXACT)


UNARY = ["sin", "cos", "tanh", "sigmoid", "relu", "exp"]


def program(
    steps: list[tuple[str, int, int]], outputs: list[int], functions: Any
) -> Callable[..., list[Any]]:
    """A function of three scalars; each step acts on earlier values, kept small by tanh."""

    def function(x1: Any, x2: Any, x3: Any) -> list[Any]:
        values = [x1, x2, x3, 0.7, -1.3]
        for name, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            if name in UNARY:
                x = functions.tanh(x + 0 * values[0])
                values.append(getattr(functions, name)(x))
            else:
                values.append({"+": x + y, "-": x - y, "*": x * y, "/": x / (y * y + 1)}[name])
        return [values[i % len(values)] for i in outputs]

    return function


@many
@given(
    st.lists(
        st.tuples(st.sampled_from([*UNARY, *"+-*/"]), st.integers(0, 12), st.integers(0, 12)),
        max_size=8,
    ),
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
def test_traced_programs_have_the_jacobian_of_torch(
    steps: list[tuple[str, int, int]], outputs: list[int], point: list[float]
) -> None:
    graph = rg.trace(program(steps, outputs, rg)).linearize(point)
    leaves = torch.tensor(point, dtype=torch.float64)

    def with_torch(x: torch.Tensor) -> torch.Tensor:
        results = program(steps, outputs, torch)(*x.unbind())
        return torch.stack([torch.as_tensor(r, dtype=torch.float64) + 0 * x[0] for r in results])

    expected = torch.autograd.functional.jacobian(with_torch, leaves)
    assert_close(rg.reverse_accumulation(graph), expected, **EXACT)
    assert_close(rg.path_sum(graph), expected, **EXACT)


def test_the_papers_example_has_four_paths() -> None:
    def f(x1: Any, x2: Any) -> Any:
        a = rg.exp(x1)
        b = rg.sin(x2)
        c = b * x2
        d = a * c
        return a * d

    primal = rg.trace(f, names="abcdf")
    graph = primal.linearize([0.5, 1.2])
    assert graph.names == ("x1", "x2", "a", "b", "c", "d", "f")
    assert [rg.count_paths(graph, i, 6) for i in (0, 1)] == [2, 2]
    x = torch.tensor([0.5, 1.2], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda x: x[0].exp() ** 2 * x[1].sin() * x[1], x)
    assert_close(rg.reverse_accumulation(graph)[0], expected, **EXACT)


def test_too_many_paths_are_not_enumerated() -> None:
    graph = interleaved(8, 12, make_key(0))
    with pytest.raises(UsageError, match="reverse_accumulation"):
        rg.path_sum(graph)


@pytest.mark.parametrize(
    ("edges", "inputs"),
    [
        ([Edge(0, 1, 1.0), Edge(1, 0, 1.0)], (0,)),
        ([Edge(0, 0, 1.0)], (0,)),
        ([Edge(1, 2, 1.0), Edge(0, 1, 1.0)], (0,)),
        ([Edge(0, 3, 1.0)], (0,)),
        ([], (0, 0)),
        ([], (-1,)),
    ],
)
def test_what_is_no_linearized_graph_is_refused(edges: list[Edge], inputs: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        LinearizedGraph(("a", "b", "c"), tuple(edges), inputs, (2,))
