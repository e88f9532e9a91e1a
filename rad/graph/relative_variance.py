"""Relative variances for Figure 2: the theory, the exact variance, and Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rad.draws.reference import fold_in
from rad.errors import UsageError
from rad.graph.exact import reverse_accumulation
from rad.graph.injection import (
    chain_variance,
    inject,
    injected_matrices,
    vector_jacobians,
)
from rad.graph.layered import independent_paths, interleaved, relative_variance
from rad.graph.linearized import LinearizedGraph
from rad.graph.path_sampling import Samplers, sample
from rad.graph.relu_network import ReluNetwork
from rad.graph.samplers import Uniform
from rad.graph.variance import variance
from rad.sketches import Project, SameSample


@dataclass(frozen=True)
class Measurement:
    """E|g_hat - g|^2 / |g|^2 as the mean over some keys, and the mean's standard error."""

    mean: float
    standard_error: float


def measure(
    estimate: Callable[[Tensor], Tensor], exact: Tensor, draws: int, key: Tensor
) -> Measurement:
    """The relative variance of `estimate(key)`, an estimate of `exact`, over independent keys."""
    squares = torch.stack(
        [(estimate(fold_in(key, i)) - exact).square().sum() for i in range(draws)]
    )
    relative = squares / exact.square().sum()
    return Measurement(relative.mean().item(), (relative.std() / draws**0.5).item())


def measure_path_sampling(
    graph: LinearizedGraph, sampler: Samplers, draws: int, key: Tensor
) -> Measurement:
    """Path sampling of the graph's Jacobian."""

    def estimate(key: Tensor) -> Tensor:
        return reverse_accumulation(sample(graph, sampler, key))

    return measure(estimate, reverse_accumulation(graph), draws, key)


def exact_path_sampling(graph: LinearizedGraph, sampler: Samplers) -> float:
    """The relative variance that `measure_path_sampling` estimates, from the closed form."""
    total = variance(graph, sampler).sum() / reverse_accumulation(graph).square().sum()
    return total.item()


def measure_every_jacobian(
    network: ReluNetwork, sketch: SameSample | Project, draws: int, key: Tensor
) -> Measurement:
    """The gradient by W_1 with independent matrices injected into every Jacobian on the way."""
    graph = network.graph()
    (a,) = vector_jacobians(graph)

    def matrix(key: Tensor) -> Tensor:
        return injected_matrices(sketch, 1, len(network.x), key)[0]

    def estimate(key: Tensor) -> Tensor:
        drawn = {edge: matrix(fold_in(key, edge)) for edge in range(len(graph.edges))}
        (a_hat,) = vector_jacobians(inject(graph, drawn))
        x_hat = network.x @ matrix(fold_in(key, len(graph.edges)))
        return a_hat.t() * x_hat

    return measure(estimate, a.t() * network.x, draws, key)


def exact_every_jacobian(network: ReluNetwork, sketch: SameSample | Project) -> float:
    """The relative variance that `measure_every_jacobian` estimates, from the closed form.

    The gradient is a_hat^T x_hat, a_hat belonging to the first preactivation. The two are
    independent, so that their relative second moments multiply.
    """
    jacobians = network.jacobians()
    noise = chain_variance(jacobians, [sketch] * len(jacobians))
    (a,) = vector_jacobians(network.graph())
    growth = 1 + sketch.relative_variance(len(network.x))
    return ((1 + noise / a.square().sum()) * growth - 1).item()


def measure_weight_jacobians(
    network: ReluNetwork, sketch: SameSample | Project, draws: int, key: Tensor
) -> Measurement:
    """The gradient by W_1 of `rad.functional`: one injection, into the weight's Jacobian."""
    (a,) = vector_jacobians(network.graph())

    def estimate(key: Tensor) -> Tensor:
        return network.sketched_gradient(sketch, key)

    return measure(estimate, a.t() * network.x, draws, key)


COLUMNS = ["graph", "injected", "width", "kept", "depth", "theory", "exact"]
COLUMNS += ["monte_carlo", "standard_error", "draws"]


@dataclass(frozen=True)
class Place:
    """A width, the number kept of it, the number of layers, and of Monte Carlo draws (or 0).

    Raises:
        UsageError: numbers that make no graph, or a single draw, which has no standard error.
    """

    width: int
    kept: int
    depth: int
    draws: int

    def __post_init__(self) -> None:
        numbers = (self.width, self.kept, self.depth, self.draws)
        if any(type(number) is not int for number in numbers):
            raise UsageError(f"width, kept, depth, draws are {numbers}; give whole numbers")
        if self.width < 1 or self.width & (self.width - 1):
            raise UsageError(f"the width is {self.width}; give a power of 2")
        if not 1 <= self.kept <= self.width:
            raise UsageError(f"cannot keep {self.kept} of {self.width}; keep 1 to {self.width}")
        if self.depth < 1:
            raise UsageError(f"the depth is {self.depth}; give at least 1")
        if self.draws < 0 or self.draws == 1:
            raise UsageError(f"{self.draws} draws measure nothing; take 0, or 2 and more")


def rows_at(place: Place, graph_key: Tensor, draw_key: Tensor) -> list[dict[str, Any]]:
    """Figure 2 at one place: a row for each graph and injection, under the names of COLUMNS.

    `theory` holds for orthogonal layers, `exact` for the very graphs, which depend on width, depth
    and `graph_key`; the Monte Carlo columns are left out where `draws` is 0.
    """
    width, kept, depth, draws = place.width, place.kept, place.depth, place.draws
    sampler, sketch = Uniform(kept), SameSample(kept / width)
    network = ReluNetwork.random(width, depth, graph_key)
    separate = independent_paths(width, depth, graph_key)
    mixed = interleaved(width, depth, graph_key)
    once = relative_variance(width, kept, 1)
    exact = [
        ("independent_paths", "path sampling", 1, exact_path_sampling(separate, sampler)),
        ("interleaved", "path sampling", depth, exact_path_sampling(mixed, sampler)),
        ("relu_network", "every Jacobian", depth + 1, exact_every_jacobian(network, sketch)),
        ("relu_network", "weight Jacobians", 1, once),
    ]
    rows: list[dict[str, Any]] = [
        {
            **{"graph": graph, "injected": injected, "width": width, "kept": kept, "depth": depth},
            **{"theory": relative_variance(width, kept, injections), "exact": variance},
        }
        for graph, injected, injections, variance in exact
    ]
    if draws:
        keys = [fold_in(draw_key, i) for i in range(len(rows))]
        measured = [
            measure_path_sampling(separate, sampler, draws, keys[0]),
            measure_path_sampling(mixed, sampler, draws, keys[1]),
            measure_every_jacobian(network, sketch, draws, keys[2]),
            measure_weight_jacobians(network, sketch, draws, keys[3]),
        ]
        for row, measurement in zip(rows, measured, strict=True):
            row |= {"monte_carlo": measurement.mean, "standard_error": measurement.standard_error}
            row["draws"] = draws
    return rows
