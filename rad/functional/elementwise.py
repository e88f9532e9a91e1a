"""Nonlinear elementwise operators whose backward pass remembers their rounded derivative.

Kept between forward and backward: a sketch of f'(x), and its key. Not kept: x, which
torch keeps (or f(x)). A sketch of x would bias f', which is not linear in x; of f' it
does not: the gradient grad_output * f'(x) is linear in what is kept. It is the gradient
of the *input* that is random here, unlike in the layers with weights; draws of
different layers are independent, so that gradients before them stay unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.arguments import check_real, without_autocast
from rad.functional.scaling import normalised
from rad.sketches.base import Sketch, accumulation_dtype

Function = Callable[[Tensor], Tensor]


class _SketchedDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, sketch: Sketch, key: Tensor) -> Tensor:
        output, derivative = _value_and_derivative(function, x)
        ctx.sketch, ctx.shape = sketch, x.shape
        if ctx.needs_input_grad[0]:
            with without_autocast(x):
                ctx.save_for_backward(key, *sketch.compress(derivative_rows(derivative), key))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, *kept = ctx.saved_tensors
        shape = derivative_rows(grad_output.expand(ctx.shape)).shape
        derivative = ctx.sketch.decompress(tuple(kept), shape, grad_output.dtype, key)
        return grad_output * derivative.view(ctx.shape), None, None, None


def elementwise(x: Tensor, function: Function, *, sketch: Sketch, key: Tensor) -> Tensor:
    """`function(x)`, applied number by number, that keeps a sketch of its derivative.

    The gradient is grad_output * d_hat with E[d_hat] = function'(x): unbiased, with the
    variance `elementwise_grad_variance`. Any shape; the rows of the sketch are those
    of the last axis, or of all axes from the third on where there are more than three
    (channels of an image). `function` must be differentiable and its result have x's
    type and shape. Differentiating twice raises RuntimeError. Raises TypeError for
    complex numbers.
    """
    check_real(x)
    result: Tensor = _SketchedDerivative.apply(x, function, sketch, key)
    return result


def elementwise_grad_variance(
    x: Tensor, grad_output: Tensor, function: Function, sketch: Sketch
) -> Tensor:
    """E |grad_hat - grad|^2 over the keys, in closed form: shape ().

    The sum of grad_output^2 times the variance of each kept derivative, for sketches
    that have an `element_variance`; TypeError for others. The result is float64.
    """
    if not hasattr(sketch, "element_variance"):
        raise TypeError(f"no closed-form gradient variance for {type(sketch).__name__}")
    derivative = derivative_rows(_value_and_derivative(function, x.detach())[1])
    noise: Tensor = sketch.element_variance(derivative)
    grad, scale = normalised(grad_output.to(accumulation_dtype(x.dtype)))
    return (grad.square() * noise.view(x.shape)).sum().double() * scale**2


def _value_and_derivative(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = function(x)
        (derivative,) = torch.autograd.grad(output.sum(), x)
    return output.detach(), derivative


def derivative_rows(x: Tensor) -> Tensor:
    """x as the rows that its sketch acts on."""
    return x.flatten(2) if x.dim() > 3 else x if x.dim() else x.view(1)
