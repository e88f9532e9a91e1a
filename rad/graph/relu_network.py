"""A deep ReLU network as a vector graph, for injection at chosen places (sections 3.3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.draws.reference import fold_in, lanes
from rad.functional import linear
from rad.graph.injection import VectorEdge, VectorGraph
from rad.sketches import Sketch


@dataclass(frozen=True)
class ReluNetwork:
    """y = c . W_L relu(W_(L-1) ... relu(W_1 x)), at one input x.

    Weights are uniform with variance 2/width, which keeps the scale through ReLUs. Shapes: each
    weight (width, width), x and c (width,), float64.
    """

    weights: tuple[Tensor, ...]
    x: Tensor
    c: Tensor

    @classmethod
    def random(cls, width: int, depth: int, key: Tensor) -> ReluNetwork:
        """Drawn from the key; deeper networks of the same key begin with the shallower one."""
        x, c = (_unit_variance(width, fold_in(key, i)) for i in range(2))
        scale = (2 / width) ** 0.5
        weights = tuple(
            scale * _unit_variance(width * width, fold_in(key, 2 + i)).view(width, width)
            for i in range(depth)
        )
        return cls(weights, x, c)

    def jacobians(self) -> list[Tensor]:
        """From the output back to the first layer's preactivation: c, then each W_l diag(mask)."""
        masks = []
        h = self.x
        for weight in self.weights:
            masks.append((weight @ h > 0).to(h.dtype))
            h = F.relu(weight @ h)
        later = zip(self.weights[1:], masks, strict=False)
        return [self.c[None], *(weight * mask for weight, mask in list(later)[::-1])]

    def graph(self) -> VectorGraph:
        """From the first layer's preactivation, the input, through the layers' to the output.

        Edge l leads from layer l + 1's to the next; vertex l is layer l + 1's, vertex L the output.
        The gradient by W_1 is a^T x for the gradient a of this graph, (1, width).
        """
        depth, width = len(self.weights), len(self.x)
        chain = self.jacobians()[::-1]
        edges = tuple(VectorEdge(layer, layer + 1, j) for layer, j in enumerate(chain))
        return VectorGraph((*[width] * depth, 1), edges, (0,), depth)

    def sketched_gradient(self, sketch: Sketch, key: Tensor) -> Tensor:
        """The gradient by W_1 from `rad.functional.linear`: (width, width).

        Layer l keeps a sketch of its input with the key fold_in(key, l), as RAD does.
        """
        leaf = self.weights[0].detach().requires_grad_()
        h = self.x[None]
        for layer, weight in enumerate((leaf, *self.weights[1:])):
            h = F.relu(h) if layer else h
            h = linear(h, weight, sketch=sketch, key=fold_in(key, layer))
        (gradient,) = torch.autograd.grad(h @ self.c, leaf)
        return gradient


def _unit_variance(count: int, key: Tensor) -> Tensor:
    """Uniform with mean 0 and variance 1."""
    steps = 1 << 16
    return ((lanes(key, count).double() + 0.5) / steps - 0.5) * 12**0.5
