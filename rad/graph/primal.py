"""Primal graphs: a function as scalar operations, linearized at a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rad.errors import UsageError
from rad.graph.linearized import Edge, LinearizedGraph
from rad.graph.operations import Operation

REMEDY = "choose another point"
T = TypeVar("T")


@dataclass(frozen=True)
class Vertex:
    """An input (neither operation nor constant), a constant, or an operation on other vertices."""

    name: str
    operation: Operation | None = None
    arguments: tuple[int, ...] = ()
    constant: float | None = None


@dataclass(frozen=True)
class PrimalGraph:
    """A function as a graph of scalar operations; vertices stand in topological order."""

    vertices: tuple[Vertex, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def evaluate(self, point: Sequence[float]) -> tuple[float, ...]:
        """The value of every vertex, where the inputs have the values `point`.

        Raises:
            UsageError: a wrong number of values, or a vertex without a finite value.
        """
        if len(point) != len(self.inputs):
            raise UsageError(
                f"{len(point)} values for a function of {len(self.inputs)} inputs; give one each"
            )
        given = dict(zip(self.inputs, point, strict=True))
        values: list[float] = []
        for number, vertex in enumerate(self.vertices):
            if vertex.operation is not None:
                arguments = [values[i] for i in vertex.arguments]
                values.append(_applied(vertex, vertex.operation.value, arguments))
            else:
                values.append(given[number] if vertex.constant is None else vertex.constant)
            _check_finite(vertex, "value", values[-1])
        return tuple(values)

    def linearize(self, point: Sequence[float]) -> LinearizedGraph:
        """The linearized computational graph at a point; it has the vertices of this graph.

        What does not depend on an input has no edges. A derivative of 0 keeps its edge: the
        structure is that of the function, not of the point.

        Raises:
            UsageError: a wrong number of values, or a vertex without value or derivative there.
        """
        values = self.evaluate(point)
        active = set(self.inputs)
        edges: list[Edge] = []
        for number, vertex in enumerate(self.vertices):
            if vertex.operation is None or active.isdisjoint(vertex.arguments):
                continue
            active.add(number)
            arguments = [values[number], *(values[i] for i in vertex.arguments)]
            local = _applied(vertex, vertex.operation.derivatives, arguments)
            for source, derivative in zip(vertex.arguments, local, strict=True):
                if source in active:
                    _check_finite(vertex, "derivative", derivative)
                    edges.append(Edge(source, number, derivative))
        edges.sort(key=lambda edge: edge.source)
        names = tuple(vertex.name for vertex in self.vertices)
        return LinearizedGraph(names, tuple(edges), self.inputs, self.outputs)


def _applied(vertex: Vertex, function: Callable[..., T], arguments: Sequence[float]) -> T:
    try:
        return function(*arguments)
    except (ValueError, ArithmeticError) as error:
        raise UsageError(f"{_described(vertex)} is undefined here ({error}); {REMEDY}") from error


def _check_finite(vertex: Vertex, what: str, number: float) -> None:
    if not math.isfinite(number):
        raise UsageError(f"{_described(vertex)} has the {what} {number}; {REMEDY}")


def _described(vertex: Vertex) -> str:
    kind = "input" if vertex.operation is None else vertex.operation.name
    return f"vertex {vertex.name} ({kind})"
