"""Minibatch gradients are path sampling over the data points (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rad.errors import UsageError
from rad.graph.linearized import LinearizedGraph
from rad.graph.path_sampling import sample
from rad.graph.primal import PrimalGraph
from rad.graph.samplers import Sampler
from rad.graph.tracing import Scalar, mean, trace


def empirical_risk(
    loss: Callable[..., Scalar], points: Sequence[Sequence[float]], parameters: int
) -> PrimalGraph:
    """The primal graph of mean over the points of loss(*theta, *point), as a function of theta.

    Raises:
        UsageError: there are no points.
    """
    if not points:
        raise UsageError("the empirical risk is a mean over data points; give at least one")
    return trace(lambda *theta: mean(*(loss(*theta, *point) for point in points)), parameters)


def sample_points(risk: LinearizedGraph, sampler: Sampler, key: Tensor) -> LinearizedGraph:
    """The graph of the loss on a minibatch: the sampled edges into the risk, and what they need.

    Every path ends in an edge from one point's loss into the risk, with derivative 1/N. The sweep
    runs from there, on the transposed graph, and samples at that vertex only; `Uniform(B)` makes
    it a minibatch of B of the N points, weighted 1/B each. A sweep from theta would draw other
    points for each parameter.

    Raises:
        UsageError: the graph has several outputs.
    """
    if len(risk.outputs) != 1:
        raise UsageError(f"a risk is one output, this graph has {len(risk.outputs)}; sum them")
    return sample(risk.transposed(), {risk.outputs[0]: sampler}, key).transposed()
