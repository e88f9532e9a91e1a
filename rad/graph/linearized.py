"""Linearized computational graphs: vertices, and edges with local derivatives (section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rad.errors import UsageError

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Edge:
    """The local derivative of vertex `target` with respect to vertex `source`."""

    source: int
    target: int
    derivative: float


@dataclass(frozen=True)
class LinearizedGraph:
    """A function near a point, as a directed acyclic graph of local derivatives.

    Vertices are the numbers 0 to len(names) - 1. Edges stand in topological order: every edge
    into a vertex comes before every edge out of it, so that forward accumulation walks them once
    from the front and reverse accumulation once from the back. Parallel edges are separate paths.
    A path-sampled graph has the same vertices and fewer edges; its edges are what it remembers.

    Raises:
        UsageError: edges that are out of order or form a cycle, or a vertex that does not exist.
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        check_order(len(self.names), [(edge.source, edge.target) for edge in self.edges])
        check_vertices(len(self.names), (*self.inputs, *self.outputs))
        if len(set(self.inputs)) != len(self.inputs):
            raise UsageError("an input stands twice among the inputs; give each vertex once")

    @cached_property
    def out_edges(self) -> dict[int, tuple[Edge, ...]]:
        """The outgoing edges of each vertex that has some, in topological order of the vertices."""
        grouped: dict[int, list[Edge]] = {}
        for edge in self.edges:
            grouped.setdefault(edge.source, []).append(edge)
        return {vertex: tuple(edges) for vertex, edges in grouped.items()}

    @cached_property
    def out_derivatives(self) -> dict[int, tuple[float, ...]]:
        """The derivatives of `out_edges`, in the same order."""
        return {v: tuple(edge.derivative for edge in edges) for v, edges in self.out_edges.items()}

    def transposed(self) -> LinearizedGraph:
        """Every edge reversed, inputs and outputs exchanged: the graph of the transposed Jacobian.

        Raises:
            UsageError: a vertex is an output twice.
        """
        edges = tuple(Edge(e.target, e.source, e.derivative) for e in reversed(self.edges))
        return LinearizedGraph(self.names, edges, self.outputs, self.inputs)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """A `networkx.MultiDiGraph` with `name` at the vertices and `derivative` at the edges.

        Raises:
            UsageError: networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            raise UsageError("networkx is not installed; run pip install networkx") from error
        graph = networkx.MultiDiGraph(inputs=self.inputs, outputs=self.outputs)
        graph.add_nodes_from((vertex, {"name": name}) for vertex, name in enumerate(self.names))
        graph.add_edges_from((e.source, e.target, {"derivative": e.derivative}) for e in self.edges)
        return graph


def check_vertices(count: int, vertices: tuple[int, ...]) -> None:
    """Raise UsageError unless all are among 0..count-1."""
    for vertex in vertices:
        if not 0 <= vertex < count:
            raise UsageError(f"there is no vertex {vertex}; choose one of 0 to {count - 1}")


def check_order(count: int, edges: list[tuple[int, int]]) -> None:
    """Raise UsageError unless every edge into a vertex comes before every edge out of it."""
    left: set[int] = set()
    for source, target in edges:
        check_vertices(count, (source, target))
        left.add(source)
        if target in left:
            raise UsageError(
                f"edge {source} -> {target} comes after an edge out of {target}; "
                "give the edges in topological order, without cycles"
            )
