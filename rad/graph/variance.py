"""The exact variance of path sampling, in closed form, on any graph and for any sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.graph.exact import adjoints
from rad.graph.linearized import LinearizedGraph
from rad.graph.path_sampling import Samplers, sampler_at


def variance(graph: LinearizedGraph, sampler: Samplers) -> Tensor:
    """The variance of every entry of the path-sampled Jacobian: float64, (outputs, inputs)."""
    rows = [covariance(graph, sampler, output).diagonal() for output in graph.outputs]
    return torch.stack(rows) if rows else torch.zeros(0, len(graph.inputs), dtype=torch.float64)


def covariance(graph: LinearizedGraph, sampler: Samplers, output: int) -> Tensor:
    """Cov of the path-sampled derivatives of one vertex: float64, (inputs, inputs).

    The estimate at vertex u is G_u = sum over its edges e of w_e G_e, G_e belonging to the target
    of e, plus 1 at the output. With g = E[G], C = Cov(G), d = E[w] and K = Cov(w) at u, and since
    w at u is independent of all that u can reach, one sweep from the back gives for vertices v
    handled before u

        C_uv = sum_e d_e C_ev
        C_uu = sum_ef d_e d_f C_ef + sum_ef K_ef (C_ef + g_e g_f).

    Memory is quadratic in the number of vertices.
    """
    exact = adjoints(graph, output)
    g = torch.tensor([exact.get(v, 0.0) for v in range(len(graph.names))], dtype=torch.float64)
    c = torch.zeros(len(g), len(g), dtype=torch.float64)
    for vertex, edges in reversed(graph.out_edges.items()):
        targets = torch.tensor([edge.target for edge in edges])
        derivatives = [edge.derivative for edge in edges]
        d = torch.tensor(derivatives, dtype=torch.float64)
        below = c[targets][:, targets]
        row = d @ c[targets]
        c[vertex], c[:, vertex] = row, row
        c[vertex, vertex] = d @ below @ d
        at_vertex = sampler_at(sampler, vertex)
        if at_vertex is not None:
            moments = below + g[targets].outer(g[targets])
            c[vertex, vertex] += (at_vertex.covariance(derivatives) * moments).sum()
    inputs = torch.tensor(graph.inputs, dtype=torch.int64)
    return c[inputs][:, inputs]
