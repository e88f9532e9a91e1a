"""Tracing: a function of scalars is called once; what is done to them becomes a primal graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Union

from rad.errors import UsageError
from rad.graph import operations as ops
from rad.graph.operations import Operation
from rad.graph.primal import PrimalGraph, Vertex

Number = Union["Scalar", float, int]


class Scalar:
    """A number of a function that is being traced; operators on it are recorded."""

    def __init__(self, trace: list[Vertex], vertex: int) -> None:
        self.trace = trace
        self.vertex = vertex

    def __add__(self, other: Number) -> Scalar:
        return _record(ops.ADD, self, other)

    def __radd__(self, other: Number) -> Scalar:
        return _record(ops.ADD, other, self)

    def __sub__(self, other: Number) -> Scalar:
        return _record(ops.SUBTRACT, self, other)

    def __rsub__(self, other: Number) -> Scalar:
        return _record(ops.SUBTRACT, other, self)

    def __mul__(self, other: Number) -> Scalar:
        return _record(ops.MULTIPLY, self, other)

    def __rmul__(self, other: Number) -> Scalar:
        return _record(ops.MULTIPLY, other, self)

    def __truediv__(self, other: Number) -> Scalar:
        return _record(ops.DIVIDE, self, other)

    def __rtruediv__(self, other: Number) -> Scalar:
        return _record(ops.DIVIDE, other, self)

    def __pow__(self, other: Number) -> Scalar:
        return _record(ops.POWER, self, other)

    def __rpow__(self, other: Number) -> Scalar:
        return _record(ops.POWER, other, self)

    def __neg__(self) -> Scalar:
        return _record(ops.NEGATE, self)

    def _refuse(self, *_: object) -> NoReturn:
        raise UsageError(
            "a traced scalar has no value yet, so that nothing can branch on it or convert it; "
            "use the functions of rad.graph, such as relu, and no comparisons"
        )

    __bool__ = __float__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


def _record(operation: Operation, *arguments: Number) -> Scalar:
    trace = next(x.trace for x in arguments if isinstance(x, Scalar))
    places = tuple(_vertex_of(trace, x) for x in arguments)
    trace.append(Vertex("", operation, places))
    return Scalar(trace, len(trace) - 1)


def _vertex_of(trace: list[Vertex], x: Number) -> int:
    """The vertex of a scalar of this trace, or a new one for a constant."""
    if isinstance(x, Scalar):
        if x.trace is not trace:
            raise UsageError("a scalar of another trace is used here; pass it as an argument")
        return x.vertex
    if isinstance(x, bool) or not isinstance(x, float | int):
        raise UsageError(f"cannot trace a {type(x).__name__}; use floats and traced scalars")
    trace.append(Vertex(f"{x:g}", constant=float(x)))
    return len(trace) - 1


def trace(
    function: Callable[..., Scalar | float | Sequence[Scalar | float]],
    inputs: int | None = None,
    names: Sequence[str] = (),
) -> PrimalGraph:
    """The primal graph of a function of scalars that returns a scalar or a sequence of them.

    The function is called once, with scalars that record what is done to them. `inputs` is needed
    where its signature does not give their number. Inputs are named as its parameters are, or
    x1, x2, ...; operations are named by `names` in the order of evaluation, then v1, v2, ...

    Raises:
        UsageError: the function branches on a value, or returns or uses what is no scalar.
    """
    parameters = _parameters(function, inputs)
    vertices = [Vertex(name) for name in parameters]
    result = function(*(Scalar(vertices, place) for place in range(len(parameters))))
    results = result if isinstance(result, Sequence) else [result]
    outputs = tuple(_vertex_of(vertices, x) for x in results)
    given, count = iter(names), 0
    for place, vertex in enumerate(vertices):
        if vertex.operation is not None:
            count += 1
            name = next(given, f"v{count}")
            vertices[place] = Vertex(name, vertex.operation, vertex.arguments)
    return PrimalGraph(tuple(vertices), tuple(range(len(parameters))), outputs)


def _parameters(function: Callable[..., object], inputs: int | None) -> list[str]:
    if inputs is not None:
        return [f"x{place + 1}" for place in range(inputs)]
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
        raise UsageError("the number of inputs is not in the function's signature; give inputs=")
    return [p.name for p in parameters]


def _function(operation: Operation) -> Callable[..., Any]:
    def apply(*arguments: Number) -> Scalar | float:
        if any(isinstance(x, Scalar) for x in arguments):
            return _record(operation, *arguments)
        return operation.value(*arguments)

    apply.__name__ = operation.name
    apply.__doc__ = f"{operation.name} of numbers, or of traced scalars: then a vertex."
    return apply


exp = _function(ops.EXP)
log = _function(ops.LOG)
sqrt = _function(ops.SQRT)
sin = _function(ops.SIN)
cos = _function(ops.COS)
tanh = _function(ops.TANH)
sigmoid = _function(ops.SIGMOID)
relu = _function(ops.RELU)
mean = _function(ops.MEAN)
