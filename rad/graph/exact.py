"""Exact derivatives three ways: sum over Bauer paths, forward and reverse accumulation.

Each takes a linearized graph and gives its Jacobian, float64, (outputs, inputs). On a path-sampled
graph the same functions give the unbiased estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rad.errors import UsageError
from rad.graph.linearized import Edge, LinearizedGraph

Path = tuple[Edge, ...]


def count_paths(graph: LinearizedGraph, source: int, target: int) -> int:
    """The number of paths between two vertices; a vertex has one path, without edges, to itself."""
    counts = {source: 1}
    for edge in graph.edges:
        if edge.source in counts:
            counts[edge.target] = counts.get(edge.target, 0) + counts[edge.source]
    return counts.get(target, 0)


def bauer_paths(graph: LinearizedGraph, source: int, target: int) -> Iterator[Path]:
    """Every path between two vertices, each as its edges."""
    leads_there = {target}
    for edge in reversed(graph.edges):
        if edge.target in leads_there:
            leads_there.add(edge.source)

    def walk(vertex: int, path: Path) -> Iterator[Path]:
        if vertex == target:
            yield path
        for edge in graph.out_edges.get(vertex, ()):
            if edge.target in leads_there:
                yield from walk(edge.target, (*path, edge))

    return walk(source, ())


def path_sum(graph: LinearizedGraph, most: int = 1_000_000) -> Tensor:
    """The Jacobian by Bauer's formula: over all paths, the product of the derivatives on the path.

    Paths can be exponentially many.

    Raises:
        UsageError: there are more than `most` paths.
    """
    pairs = [(i, j) for j in graph.outputs for i in graph.inputs]
    paths = sum(count_paths(graph, i, j) for i, j in pairs)
    if paths > most:
        raise UsageError(f"{paths} paths are too many to enumerate; use reverse_accumulation")
    sums = [
        math.fsum(math.prod(e.derivative for e in path) for path in bauer_paths(graph, i, j))
        for i, j in pairs
    ]
    return _jacobian(graph, sums)


def forward_accumulation(graph: LinearizedGraph) -> Tensor:
    """The Jacobian, one sweep from the front for each input: one product per edge."""
    columns = []
    for vertex in graph.inputs:
        tangents = {vertex: 1.0}
        for edge in graph.edges:
            if edge.source in tangents:
                term = edge.derivative * tangents[edge.source]
                tangents[edge.target] = tangents.get(edge.target, 0.0) + term
        columns.append([tangents.get(output, 0.0) for output in graph.outputs])
    return _jacobian(graph, [column[j] for j in range(len(graph.outputs)) for column in columns])


def reverse_accumulation(graph: LinearizedGraph) -> Tensor:
    """The Jacobian, one sweep from the back for each output: one product per edge."""
    rows = [adjoints(graph, output) for output in graph.outputs]
    return _jacobian(graph, [row.get(i, 0.0) for row in rows for i in graph.inputs])


def adjoints(graph: LinearizedGraph, output: int) -> dict[int, float]:
    """The derivative of one vertex with respect to each vertex that has a path to it."""
    sums = {output: 1.0}
    for edge in reversed(graph.edges):
        if edge.target in sums:
            sums[edge.source] = sums.get(edge.source, 0.0) + edge.derivative * sums[edge.target]
    return sums


def _jacobian(graph: LinearizedGraph, entries: list[float]) -> Tensor:
    shape = (len(graph.outputs), len(graph.inputs))
    return torch.tensor(entries, dtype=torch.float64).reshape(shape)
