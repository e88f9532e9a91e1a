"""Random matrix injection: Jacobians times P = R R^T with E[P] = I (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rad.errors import UsageError
from rad.graph.linearized import check_order, check_vertices
from rad.sketches import Identity, Sketch
from rad.sketches.noise import Columns


@dataclass(frozen=True)
class VectorEdge:
    """The Jacobian of vertex `target` with respect to vertex `source`: (d_target, d_source)."""

    source: int
    target: int
    jacobian: Tensor


@dataclass(frozen=True)
class VectorGraph:
    """A linearized graph of vectors with one output; vertex v has sizes[v] components.

    Edges stand in topological order, as in `LinearizedGraph`.

    Raises:
        UsageError: edges out of order, a vertex that does not exist, a Jacobian of another shape.
    """

    sizes: tuple[int, ...]
    edges: tuple[VectorEdge, ...]
    inputs: tuple[int, ...]
    output: int

    def __post_init__(self) -> None:
        check_order(len(self.sizes), [(edge.source, edge.target) for edge in self.edges])
        check_vertices(len(self.sizes), (*self.inputs, self.output))
        for edge in self.edges:
            wanted = (self.sizes[edge.target], self.sizes[edge.source])
            if edge.jacobian.shape != wanted:
                raise UsageError(
                    f"the Jacobian of {edge.source} -> {edge.target} has the shape "
                    f"{tuple(edge.jacobian.shape)}; by the sizes of its vertices, make it {wanted}"
                )


def vector_jacobians(graph: VectorGraph) -> tuple[Tensor, ...]:
    """The output's Jacobian by each input, by reverse accumulation: each (d_output, d_input).

    Equal to the sum over all paths of the product of the Jacobians on the path.
    """
    like = graph.edges[0].jacobian if graph.edges else torch.ones(())
    size = graph.sizes[graph.output]
    adjoints = {graph.output: torch.eye(size, dtype=like.dtype, device=like.device)}
    for edge in reversed(graph.edges):
        if edge.target in adjoints:
            term = adjoints[edge.target] @ edge.jacobian
            there = adjoints.get(edge.source)
            adjoints[edge.source] = term if there is None else there + term
    zeros = [like.new_zeros(size, graph.sizes[vertex]) for vertex in graph.inputs]
    return tuple(
        adjoints.get(vertex, zero) for vertex, zero in zip(graph.inputs, zeros, strict=True)
    )


def inject(graph: VectorGraph, matrices: Mapping[int, Tensor]) -> VectorGraph:
    """The graph with Jacobian J of edge number e replaced by J P, for each e: P in `matrices`.

    With independent P on every path, each with E[P] = I, `vector_jacobians` of the result is
    unbiased. What is remembered of J is J R, for P = R R^T.

    Raises:
        UsageError: there is no such edge, or P is not (d_source, d_source).
    """
    edges = list(graph.edges)
    for number, p in matrices.items():
        if not 0 <= number < len(edges):
            raise UsageError(f"there is no edge {number}; choose one of 0 to {len(edges) - 1}")
        size = graph.sizes[edges[number].source]
        if p.shape != (size, size):
            raise UsageError(f"P of edge {number} is {tuple(p.shape)}; make it {(size, size)}")
        edges[number] = replace(edges[number], jacobian=edges[number].jacobian @ p)
    return replace(graph, edges=tuple(edges))


def injected_matrices(
    sketch: Sketch, rows: int, d: int, key: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """P_n of each row of a tensor (rows, d) that this key sketches: x_hat_n = x_n P_n.

    Read off a sketch of unit vectors, for any sketch that is linear in x (sampling, projection).
    Shape: (rows, d, d). E[P_n] = I; rows share one P where the sketch shares its draw.
    """
    units = torch.eye(d, dtype=dtype, device=key.device)
    if isinstance(sketch, Identity):
        return units.expand(rows, d, d)

    def image(unit: Tensor) -> Tensor:
        x = unit.expand(rows, d)
        return sketch.decompress(sketch.compress(x, key), x.shape, dtype, key)

    return torch.vmap(image, out_dims=1)(units)


def chain_variance(jacobians: Sequence[Tensor], sketches: Sequence[Sketch]) -> Tensor:
    """E |v_hat - v|^2 of a chain v = J_1 J_2 ... J_n with P_i injected after each J_i: shape ().

    J_1, the output's, has one row: v is a gradient. P_i is that of sketches[i] with a key of its
    own; `Identity` injects nothing. With mean a and covariance C of the row so far, J_i takes C
    to J^T C J and P_i adds N(C + a^T a), N(M) = E[P^T M P] - M. Raises TypeError for a sketch
    without a closed form here.
    """
    a = jacobians[0].new_ones(1, 1)
    c = jacobians[0].new_zeros(1, 1)
    for jacobian, sketch in zip(jacobians, sketches, strict=True):
        a = a @ jacobian
        c = jacobian.t() @ c @ jacobian
        c = c + injection_noise(sketch, c + a.t() @ a)
    return c.trace()


def injection_noise(sketch: Sketch, m: Tensor) -> Tensor:
    """N(M) = E[P^T M P] - M over the keys, for M symmetric (d, d).

    Sampling: N(M)_ij = M_ij (d [i = j] - 1)/k with replacement; without, M_ii (d - k)/k and
    -M_ij (d - k)/(k (d - 1)). Projection: (M + tr(M) I - 2 diag(M))/k. The trace is
    tr(M) times the sketch's relative variance in each case.
    """
    d, total = len(m), torch.zeros_like(m)
    eye = torch.eye(d, dtype=m.dtype, device=m.device)
    for part in sketch.noise(d):
        if not isinstance(part, Columns) or not part.shared:
            raise TypeError(f"no closed-form injection noise for {type(sketch).__name__}")
        if part.mixed:
            unit = m + m.trace() * eye - 2 * torch.diag(m.diagonal())
        else:
            unit = (d * eye - 1) * m
        total = total + part.factor * unit
    return total
