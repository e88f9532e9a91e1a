from itertools import combinations, product
from typing import Any

import pytest
import torch
from cases import LOSSY, SKETCHES
from torch import Tensor
from torch.testing import assert_close
from unbiased import check_biased_is_caught, check_unbiased, draws

import rad.graph as rg
from rad.errors import UsageError
from rad.functional import linear
from rad.graph.injection import injection_noise
from rad.graph.relative_variance import exact_every_jacobian, measure_every_jacobian
from rad.graph.relu_network import ReluNetwork
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    Identity,
    Project,
    SameSample,
    Sketch,
    fold_in,
    make_key,
)

# Rounding and sampling by norm are no matrix times x: they are not injections.
MATRICES = (Identity, SameSample, DifferentSample, Project, DifferentProject)
LINEAR = {name: sketch for name, sketch in SKETCHES.items() if isinstance(sketch, MATRICES)}

D = 3
SHARED = {
    "sample": SameSample(0.6),
    "distinct": SameSample(0.6, replacement=False),
    "project": Project(0.6),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_matrices(sketch: SameSample | Project) -> list[Tensor]:
    """Every P = R R^T of a sketch of D numbers, all equally likely, from its definition."""
    k = sketch.kept(D)
    unit = torch.eye(D, dtype=torch.float64)
    if isinstance(sketch, Project):
        signs = torch.tensor(list(product((-1.0, 1.0), repeat=D * k)), dtype=torch.float64)
        return [r @ r.t() / k for r in signs.view(-1, D, k)]
    choices = product(range(D), repeat=k) if sketch.replacement else combinations(range(D), k)
    return [D / k * torch.diag(unit[list(chosen)].sum(0)) for chosen in choices]


@pytest.mark.parametrize("sketch", SHARED.values(), ids=SHARED.keys())
def test_noise_in_closed_form(sketch: Any) -> None:
    matrices = all_matrices(sketch)
    m = random(D, D)
    m = m @ m.t()
    assert_close(torch.stack(matrices).mean(0), torch.eye(D, dtype=torch.float64))
    expected = torch.stack([p.t() @ m @ p for p in matrices]).mean(0) - m
    assert_close(injection_noise(sketch, m), expected, rtol=1e-12, atol=1e-12)
    assert expected.trace().item() == pytest.approx(m.trace().item() * sketch.relative_variance(D))


@pytest.mark.parametrize("sketch", SHARED.values(), ids=SHARED.keys())
def test_chain_variance_over_all_matrices(sketch: Any) -> None:
    first, second, last = random(1, D), random(D, D, seed=1), random(D, 2, seed=2)
    exact = first @ second @ last
    squares, mean = [], torch.zeros_like(exact)
    outcomes = list(product(all_matrices(sketch), repeat=2))
    for p, q in outcomes:
        estimate = first @ p @ second @ q @ last
        mean += estimate / len(outcomes)
        squares.append((estimate - exact).square().sum())
    assert_close(mean, exact, rtol=1e-12, atol=1e-12)
    predicted = rg.chain_variance([first, second, last], [sketch, sketch, Identity()])
    assert_close(predicted, torch.stack(squares).mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["same_sample", "different_sample", "project", "different_project"]
)
def test_matrices_are_unbiased_and_are_those_of_the_sketch(name: str) -> None:
    sketch = LOSSY[name]
    x, key = random(2, 5), make_key(4)
    x_hat = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
    matrices = rg.injected_matrices(sketch, 2, 5, key)
    assert_close((x[:, None] @ matrices)[:, 0], x_hat)
    samples = draws(lambda key: rg.injected_matrices(sketch, 2, 5, key), 3_000)
    truth = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)


@pytest.mark.parametrize("sketch", LINEAR.values(), ids=LINEAR.keys())
def test_the_linear_layer_is_one_injection_on_every_path(sketch: Sketch) -> None:
    """The weight stands once for each row, and P is injected between that copy and its output."""
    rows, d, out = 3, 5, 4
    x, weight, c = random(rows, d), random(out, d, seed=1), random(rows, out, seed=2)
    key = make_key(11)
    leaf = weight.clone().requires_grad_()
    linear(x, leaf, sketch=sketch, key=key).mul(c).sum().backward()
    assert leaf.grad is not None

    unit = torch.eye(out, dtype=torch.float64)
    sizes = (out * d, *[out * d] * rows, *[out] * rows, 1)
    whole = torch.eye(out * d, dtype=torch.float64)
    copies = [rg.VectorEdge(0, 1 + n, whole) for n in range(rows)]
    layer = [
        rg.VectorEdge(1 + n, 1 + rows + n, torch.kron(unit, x[n : n + 1])) for n in range(rows)
    ]
    loss = [rg.VectorEdge(1 + rows + n, 1 + 2 * rows, c[n : n + 1]) for n in range(rows)]
    graph = rg.VectorGraph(sizes, (*copies, *layer, *loss), (0,), 1 + 2 * rows)
    (exact,) = rg.vector_jacobians(graph)
    assert_close(exact.view(out, d), c.t() @ x)

    matrices = rg.injected_matrices(sketch, rows, d, key)
    placed = {rows + n: torch.kron(unit, matrices[n]) for n in range(rows)}
    (estimate,) = rg.vector_jacobians(rg.inject(graph, placed))
    assert_close(estimate.view(out, d), leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sketch", [SameSample(0.5), Project(0.5)])
def test_a_deep_network(sketch: Any) -> None:
    network, key = ReluNetwork.random(6, 4, make_key(0)), make_key(1)
    (a,) = rg.vector_jacobians(network.graph())
    exact = network.sketched_gradient(Identity(), key)
    assert_close(a.t() * network.x, exact)
    p = rg.injected_matrices(sketch, 1, 6, fold_in(key, 0))[0]
    assert_close(network.sketched_gradient(sketch, key), a.t() * (network.x @ p))


def test_measured_variance_of_every_jacobian_is_the_exact_one() -> None:
    network, sketch = ReluNetwork.random(4, 1, make_key(2)), SameSample(0.75)
    measured = measure_every_jacobian(network, sketch, 400, make_key(3))
    exact = exact_every_jacobian(network, sketch)
    assert abs(measured.mean - exact) < 5.5 * measured.standard_error < 0.6 * exact


def test_shapes_that_do_not_fit_are_refused() -> None:
    edge = rg.VectorEdge(0, 1, random(2, 3))
    graph = rg.VectorGraph((3, 2), (edge,), (0,), 1)
    for matrices in ({1: random(3, 3)}, {0: random(2, 2)}):
        with pytest.raises(UsageError):
            rg.inject(graph, matrices)
    with pytest.raises(UsageError, match="shape"):
        rg.VectorGraph((2, 3), (edge,), (0,), 1)
    with pytest.raises(TypeError, match="closed-form"):
        injection_noise(LOSSY["different_sample"], random(3, 3))
