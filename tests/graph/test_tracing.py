import importlib
import sys
from collections.abc import Callable
from typing import Any

import networkx
import pytest
import torch
from torch.testing import assert_close

import rad.graph as rg
from rad.errors import UsageError


@pytest.mark.parametrize(
    ("traced", "with_torch", "point"),
    [
        (lambda x, y: x**y, lambda x, y: x**y, (1.3, -0.4)),
        (lambda x, y: x**3 + 2**y, lambda x, y: x**3 + 2**y, (-1.3, -0.4)),
        (lambda x, y: (x - 1) ** 0 + y, lambda x, y: 0 * x + y + 1, (1.0, 0.5)),
        (lambda x, y: (x - 1) ** 2 + y, lambda x, y: (x - 1) ** 2 + y, (1.0, 0.5)),
        (lambda x, y: 1 - x / y - 2 / x, lambda x, y: 1 - x / y - 2 / x, (0.7, 2.5)),
        (lambda x, y: rg.log(x) * rg.sqrt(y), lambda x, y: x.log() * y.sqrt(), (0.3, 2.5)),
        (lambda x, y: rg.mean(x, y, x, 5.0), lambda x, y: (2 * x + y + 5) / 4, (0.3, 2.5)),
        (lambda x, y: -x * rg.sigmoid(-y), lambda x, y: -x * (-y).sigmoid(), (0.3, 800.0)),
        (lambda x, y: rg.relu(x) + rg.relu(y), lambda x, y: x.relu() + y.relu(), (0.3, 0.0)),
    ],
)
def test_operations_have_the_values_and_derivatives_of_torch(
    traced: Callable[..., Any], with_torch: Callable[..., Any], point: tuple[float, float]
) -> None:
    primal = rg.trace(traced)
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in point]
    expected = with_torch(*leaves)
    assert primal.evaluate(point)[primal.outputs[0]] == pytest.approx(expected.item(), rel=1e-14)
    jacobian = rg.reverse_accumulation(primal.linearize(point))[0]
    gradient = torch.stack(torch.autograd.grad(expected, leaves))
    assert_close(jacobian, gradient, rtol=1e-12, atol=1e-12)


def test_constants_and_unused_inputs_have_no_edges() -> None:
    graph = rg.trace(lambda x, y, z: [2 * x + 3 * rg.exp(0.0), 7.0, y]).linearize([1.0, 2.0, 3.0])
    expected = torch.tensor([[2.0, 0, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    assert rg.reverse_accumulation(graph).equal(expected)
    assert len(graph.edges) == 2


def test_plain_numbers_stay_plain() -> None:
    assert rg.exp(0.0) == 1.0
    assert rg.mean(1, 2) == 1.5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x > 0 else -x,
        lambda x: x if x else -x,
        lambda x: float(x),
        lambda x: [x, "1"],
        lambda x: x + "1",
        lambda x: x * True,
        lambda *xs: xs[0],
    ],
)
def test_what_cannot_be_traced_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UsageError):
        rg.trace(function)


def test_a_scalar_of_another_trace_is_refused() -> None:
    leaked: list[Any] = []
    rg.trace(lambda x: leaked.append(x) or x)
    with pytest.raises(UsageError, match="another trace"):
        rg.trace(lambda x: x + leaked[0])


@pytest.mark.parametrize(
    ("function", "point"),
    [
        (rg.log, -1.0),
        (rg.sqrt, 0.0),
        (lambda x: 1 / x, 0.0),
        (lambda x: (-1 - x) ** 0.5, 0.0),
        (lambda x: rg.exp(x), 1000.0),
        (lambda x: x * 1e308 * 10, 1.0),
        (lambda x: x, float("nan")),
    ],
)
def test_a_point_without_derivative_is_refused(function: Any, point: float) -> None:
    primal = rg.trace(function, inputs=1)
    with pytest.raises(UsageError, match="another point"):
        primal.linearize([point])
    with pytest.raises(UsageError, match="1 inputs"):
        primal.linearize([point, point])


def test_networkx_holds_the_same_graph() -> None:
    graph = rg.trace(lambda x, y: x * x + y).linearize([3.0, 4.0])
    converted = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(converted)
    assert converted.number_of_edges() == len(graph.edges) == 4
    assert [d for _, _, d in converted.edges(data="derivative")] == [3.0, 3.0, 1.0, 1.0]
    assert converted.nodes[0]["name"] == "x"


def test_the_package_needs_neither_networkx_nor_matplotlib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("rad.graph")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("networkx", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    fresh = importlib.import_module("rad.graph")
    graph = fresh.trace(lambda x: x).linearize([1.0])
    with pytest.raises(UsageError, match="pip install networkx"):
        graph.to_networkx()
