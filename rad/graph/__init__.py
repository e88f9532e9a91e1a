"""The linearized computational graph of a function, and random estimates of its derivatives.

    graph = trace(f).linearize([0.5, 1.2])             # vertices, edges with local derivatives
    reverse_accumulation(graph)                        # exact; also forward_accumulation, path_sum
    sparse = sample(graph, Uniform(k=1), make_key(0))  # fewer edges: what is remembered
    reverse_accumulation(sparse)                       # unbiased
    variance(graph, Uniform(k=1))                      # its variance, exactly

`samplers` shows how to add a sampler; `drawing` and `figures`, which need matplotlib, are imported
only by who draws.
"""

from rad.graph.exact import (
    bauer_paths,
    count_paths,
    forward_accumulation,
    path_sum,
    reverse_accumulation,
)
from rad.graph.from_torch import linearize_torch
from rad.graph.injection import (
    VectorEdge,
    VectorGraph,
    chain_variance,
    inject,
    injected_matrices,
    vector_jacobians,
)
from rad.graph.linearized import Edge, LinearizedGraph
from rad.graph.minibatch import empirical_risk, sample_points
from rad.graph.path_sampling import outcomes, sample
from rad.graph.primal import PrimalGraph
from rad.graph.samplers import Proportional, Sampler, Uniform, uniforms
from rad.graph.tracing import cos, exp, log, mean, relu, sigmoid, sin, sqrt, tanh, trace
from rad.graph.variance import covariance, variance

__all__ = [
    "Edge",
    "LinearizedGraph",
    "PrimalGraph",
    "Proportional",
    "Sampler",
    "Uniform",
    "VectorEdge",
    "VectorGraph",
    "bauer_paths",
    "chain_variance",
    "cos",
    "count_paths",
    "covariance",
    "empirical_risk",
    "exp",
    "forward_accumulation",
    "inject",
    "injected_matrices",
    "linearize_torch",
    "log",
    "mean",
    "outcomes",
    "path_sum",
    "relu",
    "reverse_accumulation",
    "sample",
    "sample_points",
    "sigmoid",
    "sin",
    "sqrt",
    "tanh",
    "trace",
    "uniforms",
    "variance",
    "vector_jacobians",
]
