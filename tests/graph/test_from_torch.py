from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

import rad.graph as rg
from rad.errors import UsageError
from rad.graph import Uniform
from rad.sketches import make_key


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    return nn.Sequential(*layers).double()


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """By x and then by the parameters, as torch computes it."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    by_x, by_parameters = jacrev(
        lambda x, p: functional_call(module, p, (x,)).flatten(), argnums=(0, 1)
    )(x, parameters)
    return torch.cat([by_x.flatten(1), *(j.flatten(1) for j in by_parameters.values())], dim=1)


def test_a_network_has_the_jacobian_of_torch() -> None:
    module, x = network(), torch.randn(2, 3, dtype=torch.float64)
    graph = rg.linearize_torch(module, x)
    expected = jacobian(module, x)
    assert_close(rg.reverse_accumulation(graph), expected, rtol=1e-12, atol=1e-12)
    assert_close(rg.path_sum(graph), expected, rtol=1e-12, atol=1e-12)
    assert graph.names[6] == "0.weight[0,0]"


def test_path_sampling_of_a_network() -> None:
    module, x = network(), torch.randn(3, dtype=torch.float64)
    graph = rg.linearize_torch(module, x)
    sampler = {vertex: Uniform(2) for vertex in graph.inputs[:2]}
    mean = torch.zeros(2, len(graph.inputs), dtype=torch.float64)
    square = mean.clone()
    exact = rg.reverse_accumulation(graph)
    for probability, sparse in rg.outcomes(graph, sampler):
        assert len(sparse.edges) < len(graph.edges)
        estimate = rg.reverse_accumulation(sparse)
        mean += probability * estimate
        square += probability * (estimate - exact).square()
    assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    assert_close(rg.variance(graph, sampler), square, rtol=1e-10, atol=1e-12)
    everywhere = rg.sample(graph, Uniform(1), make_key(0))
    assert rg.reverse_accumulation(everywhere).isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: (x * x).sum() * y.exp(),
        lambda x, y: torch.cat([x, y]).t() @ x,
        lambda x, y: x.view(2, -1).sum(0) / y.shape[0],
        lambda x, y: torch.where(x > 0, x, x * 2),
    ],
)
def test_functions(function: Callable[..., Tensor]) -> None:
    x = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)
    y = x.flip(0) if "cat" in function.__code__.co_names else x[:1] + 1
    if "cat" in function.__code__.co_names:
        x, y = x.view(2, 2), y.view(2, 2)[:0]
    graph = rg.linearize_torch(function, x, y)
    by_both = jacrev(function, argnums=(0, 1))(x, y)
    outputs = function(x, y).numel()
    expected = torch.cat([j.reshape(outputs, -1) for j in by_both], dim=1)
    assert_close(rg.reverse_accumulation(graph), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x.relu_(),
        lambda x: x.chunk(2)[0],
        lambda x: x.argmax(),
        lambda x: (x, x),
        lambda x, y: x,
        lambda x: torch.outer(x.repeat(300), x.repeat(300)),
    ],
)
def test_what_has_no_linearized_graph_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError):
        rg.linearize_torch(function, torch.tensor([0.3, -1.2, 0.8, 2.0]))
