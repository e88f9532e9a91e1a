"""The graphs of Figure 2: layers of units whose paths are independent, or fully interleaved.

Layer Jacobians are orthogonal, so that the exact gradient neither grows nor vanishes and the
relative variance of path sampling has a closed form for every single graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rad.draws.reference import fold_in, signs
from rad.errors import UsageError
from rad.graph.linearized import Edge, LinearizedGraph


def interleaved(width: int, depth: int, key: Tensor) -> LinearizedGraph:
    """Every unit of a layer feeds every unit of the next: width**(depth + 1) paths (Figure 2b).

    `width` inputs, `depth` layers of `width` units, one output that weighs the last layer by
    random signs. Layer Jacobians are Hadamard matrices with random signs of rows and columns, over
    sqrt(width). Raises UsageError unless width is a power of 2.
    """
    return layered([_orthogonal(width, fold_in(key, i)) for i in range(depth)], fold_in(key, depth))


def independent_paths(width: int, depth: int, key: Tensor) -> LinearizedGraph:
    """The inputs fan out once; then `width` chains run side by side to the output (Figure 2a).

    As `interleaved`, with Jacobians that are diagonal, of random signs, after the first layer.
    """
    first = _orthogonal(width, fold_in(key, 0))
    chains = [torch.diag(_signs(width, fold_in(key, i))) for i in range(1, depth)]
    return layered([first, *chains], fold_in(key, depth))


def layered(jacobians: list[Tensor], key: Tensor) -> LinearizedGraph:
    """Layers of equal width, one output that weighs the last by random signs; no edge for a 0.

    Jacobian i is that of layer i + 1 with respect to layer i: (width, width).
    """
    width, depth = len(jacobians[0]), len(jacobians)
    edges = [
        Edge(layer * width + source, (layer + 1) * width + target, derivative)
        for layer, jacobian in enumerate(jacobians)
        for source, column in enumerate(jacobian.t().tolist())
        for target, derivative in enumerate(column)
        if derivative != 0
    ]
    output = (depth + 1) * width
    last = _signs(width, key).tolist()
    edges.extend(Edge(depth * width + unit, output, sign) for unit, sign in enumerate(last))
    names = [f"h{layer}[{unit}]" for layer in range(depth + 1) for unit in range(width)]
    return LinearizedGraph((*names, "y"), tuple(edges), tuple(range(width)), (output,))


def relative_variance(width: int, kept: int, injections: int) -> float:
    """E|g_hat - g|^2 / |g|^2 = (1 + (d - 1)/k)^n - 1 after n independent draws on every path.

    For the gradient by all inputs, where each draw keeps k of d with replacement, or projects on k
    dimensions, and the Jacobians between are orthogonal. Path sampling with `Uniform(k)` draws
    n = depth times on the paths of `interleaved`, once on those of `independent_paths`, whatever
    the depth: vertices with one outgoing edge add nothing.
    """
    return float((1 + (width - 1) / kept) ** injections - 1)


def _orthogonal(width: int, key: Tensor) -> Tensor:
    if width < 1 or width & (width - 1):
        raise UsageError(f"the width is {width}; give a power of 2")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rows, columns = _signs(width, fold_in(key, 0)), _signs(width, fold_in(key, 1))
    return rows[:, None] * matrix * columns / width**0.5


def _signs(count: int, key: Tensor) -> Tensor:
    return signs(key, range(1), count, torch.float64)[0]
