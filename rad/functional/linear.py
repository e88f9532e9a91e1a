"""Linear layer whose backward pass remembers a sketch of the input.

Kept between forward and backward: the sketch of the input, its key, and the
weight (a parameter, kept anyway). Not kept: the input itself. The gradients of
input and bias are exact; that of the weight is grad_output^T x_hat, unbiased
because it is linear in x_hat (paper, section 4).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.functional.apply import apply
from rad.functional.arguments import check_real, product_dtype
from rad.functional.compression import keep
from rad.functional.second_order import OF_WEIGHT, refuse, will_be_differentiated
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity


class _SketchedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sketch: Sketch,
        key: Tensor,
        *kept: Tensor,
    ) -> Tensor:
        ctx.sketch, ctx.input_shape, ctx.input_dtype = sketch, x.shape, x.dtype
        ctx.weight_dtype, ctx.bias_dtype = weight.dtype, bias.dtype if bias is not None else None
        ctx.save_for_backward(key, weight if ctx.needs_input_grad[0] else None, *kept)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, weight, *kept = ctx.saved_tensors
        grad, (of_input, of_weight, of_bias) = grad_output, ctx.needs_input_grad[:3]
        grad_input = grad_weight = grad_bias = None
        if of_weight:  # first: the input's gradient then stands beside no reading
            weight_grad = contracted(ctx.sketch, grad, kept, ctx.input_shape, key, not of_input)
            grad_weight = _as(weight_grad, ctx.weight_dtype)
        if of_input:
            grad_input = _as(grad.mm(_as(weight, grad.dtype)), ctx.input_dtype)
        if of_bias:
            grad_bias = _as(grad.sum(0), ctx.bias_dtype)
        return grad_input, grad_weight, grad_bias, None, None, *[None for _ in kept]


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, without a call where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def contracted(
    sketch: Sketch,
    grad_output: Tensor,
    kept: list[Tensor],
    shape: tuple[int, ...],
    key: Tensor,
    input_is_constant: bool,
) -> Tensor:
    """grad_output^T x_hat as it can be compiled, and differentiated or not."""
    if isinstance(sketch, Identity):
        return grad_output.t().mm(_as(kept[0], grad_output.dtype))
    if torch.compiler.is_compiling():
        return _linear_weight_grad(grad_output, kept, shape[1], key, as_text(sketch))
    if not will_be_differentiated():
        return sketch.contract(grad_output, tuple(kept), tuple(shape), key)
    with torch.no_grad():
        gradient = sketch.contract(grad_output, tuple(kept), tuple(shape), key)
    is_constant = input_is_constant and not grad_output.requires_grad
    return gradient if is_constant else refuse(gradient, OF_WEIGHT)


@opaque()
def _linear_weight_grad(
    grad_output: Tensor, kept: list[Tensor], d: int, key: Tensor, sketch: str
) -> Tensor:
    shape = (len(grad_output), d)
    return from_text(sketch).contract(grad_output, tuple(kept), shape, key)


def keep_for_linear(x: Tensor, weight: Tensor, sketch: Sketch, key: Tensor) -> tuple[Tensor, ...]:
    """What `linear` keeps of x, to be given to it as `kept`; nothing if the weight is frozen."""
    check_real(x)
    if not (weight.requires_grad and torch.is_grad_enabled()) or x.shape[-1] == 0:
        return ()
    return keep(sketch, rows_of(x), key, product_dtype(x))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    sketch: Sketch,
    key: Tensor,
    kept: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """`torch.nn.functional.linear` that keeps a sketch of x instead of x.

    Shapes: x (..., in_features), weight (out_features, in_features), bias
    (out_features,) -> (..., out_features). The leading axes of x are the rows of
    the sketch. Under autocast the sketch is taken in the dtype of the product, as
    torch keeps it. Layers that read one x may share what is kept of it: `kept` is what
    `keep_for_linear` gave with that sketch and key. Second derivatives:
    `rad.functional.second_order`. Raises TypeError for complex numbers.
    """
    if x.shape[-1] == 0:
        return F.linear(x, weight, bias)
    kept = keep_for_linear(x, weight, sketch, key) if kept is None else kept
    result = apply(_SketchedLinear, rows_of(x), weight, bias, sketch, key, *kept)
    return result if x.dim() == 2 else result.view(*x.shape[:-1], len(weight))


def rows_of(x: Tensor) -> Tensor:
    """x (..., d) as (rows, d)."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
