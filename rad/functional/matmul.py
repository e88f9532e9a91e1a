"""The product of two activations, such as queries and keys, from a sketch of each.

The gradients are grad_a = grad_output b^T and grad_b = a^T grad_output: each linear in the other
factor. Kept are a sketch of b for the one and of a for the other, with draws of their own, and
neither of the factors. Both gradients are random then, and unbiased.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.draws.dispatch import fold_in
from rad.errors import UsageError
from rad.functional.apply import apart
from rad.functional.arguments import check_real, product_dtype
from rad.functional.compression import keep, read
from rad.functional.second_order import OF_PRODUCT, refused
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity


def matmul(a: Tensor, b: Tensor, *, sketch: Sketch, key: Tensor) -> Tensor:
    """`torch.matmul` of two tensors of at least two axes that keeps a sketch of each.

    Shapes: a (..., n, m), b (..., m, p), whose leading axes broadcast -> (..., n, p). Kept are
    `sketch` of b's rows of p where a needs a gradient, of a's rows of m where b does, and the key.
    Differentiating twice raises RuntimeError. Raises UsageError for fewer axes, TypeError for
    complex numbers, and RuntimeError where torch does.
    """
    check_real(a)
    check_real(b)
    if min(a.dim(), b.dim()) < 2:
        raise UsageError(f"matmul of tensors of {a.dim()} and {b.dim()} axes: give at least two")
    if isinstance(sketch, Identity) or not (a.numel() and b.numel()):
        return torch.matmul(a, b)
    result: Tensor = _Product.apply(*apart(a, b), sketch, key)
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
        ctx.sketch, ctx.shapes, ctx.dtypes = sketch, (a.shape, b.shape), (a.dtype, b.dtype)
        of_a, of_b = ctx.needs_input_grad[:2]
        kept_a = keep(sketch, a, fold_in(key, 0), product_dtype(a)) if of_b else ()
        kept_b = keep(sketch, b, fold_in(key, 1), product_dtype(b)) if of_a else ()
        ctx.parts = len(kept_a)
        ctx.save_for_backward(key, *kept_a, *kept_b)
        return torch.matmul(a, b)

    @staticmethod
    @refused(OF_PRODUCT)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, *kept = ctx.saved_tensors
        kept_a, kept_b = kept[: ctx.parts], kept[ctx.parts :]
        grads: list[Tensor | None] = [None, None]
        for place, parts in ((0, kept_b), (1, kept_a)):
            if ctx.needs_input_grad[place]:
                grads[place] = _gradient(ctx, grad_output, place, parts, fold_in(key, 1 - place))
        return *grads, None, None


def _gradient(ctx: Any, grad: Tensor, place: int, kept: list[Tensor], key: Tensor) -> Tensor:
    """The gradient by a (place 0) or b (1), from what is kept of the other."""
    other = read(ctx.sketch, kept, ctx.shapes[1 - place], grad, key).mT
    product = grad @ other if place == 0 else other @ grad
    return product.sum_to_size(ctx.shapes[place]).to(ctx.dtypes[place])
