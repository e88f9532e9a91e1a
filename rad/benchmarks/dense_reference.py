"""RAD done straightforwardly, to compare with: keep a sketch, rebuild the dense input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.sketches import Identity, Sketch


def dense_reference(model: nn.Module, sketch: Sketch) -> nn.Module:
    """The converted model, whose `nn.Linear` and `nn.Conv2d` layers do so.

    They have biases, and convolutions neither groups nor dilation nor another padding than zeros.
    """
    dense = rad.convert(model, Identity())
    for layer in dense.modules():
        if isinstance(layer, rad.nn.Sketching):
            layer.forward = _Dense(layer, sketch)
    return dense


class _Dense:
    """A layer that keeps a sketch, rebuilds the dense input and calls torch."""

    def __init__(self, layer: rad.nn.Sketching, sketch: Sketch) -> None:
        self.layer, self.sketch = layer, sketch

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = _DenseFunction.apply(
            x, self.layer.weight, self.layer.bias, self.layer, self.sketch, self.layer.next_key()
        )
        return result


class _DenseFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: Any, sketch: Sketch, key: Tensor
    ) -> Tensor:
        rows = x if x.dim() == 2 else x.flatten(2).flatten(0, 1)
        ctx.save_for_backward(weight, bias, key, *sketch.compress(rows, key))
        ctx.layer, ctx.sketch, ctx.shape, ctx.rows_shape = layer, sketch, x.shape, rows.shape
        return _exact(layer, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, key, *kept = ctx.saved_tensors
        dense = ctx.sketch.decompress(tuple(kept), ctx.rows_shape, weight.dtype, key)
        with torch.enable_grad():
            leaves = [dense.view(ctx.shape), weight.detach(), bias.detach()]
            x, weight, bias = (leaf.requires_grad_() for leaf in leaves)
            output = _exact(ctx.layer, x, weight, bias)
        wanted = [x, weight, bias] if ctx.needs_input_grad[0] else [weight, bias]
        grads = torch.autograd.grad(output, wanted, grad_output)
        return *((None,) * (3 - len(grads))), *grads, None, None, None


def _exact(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)
