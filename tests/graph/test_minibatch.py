from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rad.graph as rg
from rad.errors import UsageError
from rad.graph import Uniform
from rad.sketches import fold_in, make_key

POINTS = [(0.5, 1.0), (-1.0, 0.3), (2.0, -0.7), (0.1, 0.2), (1.5, 1.1)]
THETA = (0.4, -0.8)


def squared_error(slope: Any, offset: Any, x: float, y: float) -> Any:
    error = rg.tanh(slope * x + offset) - y
    return error * error


def gradient(points: Tensor) -> Tensor:
    """Of the mean loss over these points, by torch: (1, 2)."""
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    loss = ((theta[0] * points[:, 0] + theta[1]).tanh() - points[:, 1]).square().mean()
    return torch.autograd.grad(loss, theta)[0][None]


@pytest.mark.parametrize("replacement", [True, False])
def test_a_minibatch_is_a_path_sample_of_the_points(replacement: bool) -> None:
    sampler, points = Uniform(2, replacement), torch.tensor(POINTS, dtype=torch.float64)
    risk = rg.empirical_risk(squared_error, POINTS, parameters=2).linearize(THETA)
    assert_close(rg.reverse_accumulation(risk), gradient(points))
    (mean,) = risk.outputs
    derivatives = risk.transposed().out_derivatives[mean]
    assert derivatives == (1 / len(POINTS),) * len(POINTS)
    for seed in range(10):
        key = make_key(seed)
        drawn = sampler.draw(derivatives, fold_in(key, mean))
        losses = [edge.target for edge in risk.transposed().out_edges[mean]]
        counts = {slot: round(2 * weight) for slot, weight in drawn.items()}
        order = sorted(range(len(POINTS)), key=lambda slot: losses[slot])
        batch = [order.index(slot) for slot, count in counts.items() for _ in range(count)]
        assert len(batch) == 2
        sampled = rg.sample_points(risk, sampler, key)
        assert_close(rg.reverse_accumulation(sampled), gradient(points[batch]))
        assert len(sampled.edges) * len(POINTS) == len(risk.edges) * len(set(batch))


def test_the_expectation_over_all_minibatches_is_the_full_gradient() -> None:
    risk = rg.empirical_risk(squared_error, POINTS, parameters=2).linearize(THETA)
    (mean,) = risk.outputs
    outcomes = list(rg.outcomes(risk.transposed(), {mean: Uniform(2)}))
    assert len(outcomes) == 15
    expected = sum(p * rg.reverse_accumulation(graph).t() for p, graph in outcomes)
    assert_close(expected, rg.reverse_accumulation(risk), rtol=1e-12, atol=1e-12)


def test_no_points_and_several_risks_are_refused() -> None:
    with pytest.raises(UsageError, match="point"):
        rg.empirical_risk(squared_error, [], parameters=2)
    graph = rg.trace(lambda x: [x, x]).linearize([1.0])
    with pytest.raises(UsageError, match="one output"):
        rg.sample_points(graph, Uniform(1), make_key(0))
