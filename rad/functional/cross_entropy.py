"""Cross entropy that keeps the probabilities in a few bits.

The gradient by the logits, (p - onehot(target)) / count, is linear in the probabilities
p = softmax(logits): any unbiased sketch of them gives an unbiased gradient. Kept are a sketch of p,
its key and the targets; torch keeps the logarithms of p. Stochastic rounding suits them best: the
variance of a small number is that number times a step, so that a row's is at most a step, however
many words there are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.errors import UsageError
from rad.functional.arguments import check_real
from rad.functional.compression import keep, read
from rad.functional.second_order import OF_CROSS_ENTROPY, refused
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity

Reduction = Literal["mean", "sum"]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        reduction: Reduction,
        sketch: Sketch,
        key: Tensor,
    ) -> Tensor:
        ctx.shape, ctx.dtype, ctx.sketch = logits.shape, logits.dtype, sketch
        ctx.ignore_index, ctx.reduction = ignore_index, reduction
        logarithms = F.log_softmax(logits, 1)
        loss = F.nll_loss(logarithms, target, ignore_index=ignore_index, reduction=reduction)
        if ctx.needs_input_grad[0]:
            kept = keep(sketch, logarithms.exp_(), key, logarithms.dtype)
            ctx.save_for_backward(key, target, *kept)
        return loss

    @staticmethod
    @refused(OF_CROSS_ENTROPY)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, target, *kept = ctx.saved_tensors
        p = read(ctx.sketch, kept, ctx.shape, grad_output, key)
        counted = target != ctx.ignore_index
        index = target.to(torch.int64).where(counted, 0)[:, None]
        p.scatter_add_(1, index, p.new_full((), -1).expand(index.shape))
        scale = counted.to(p.dtype)
        if ctx.reduction == "mean":
            scale = scale / counted.sum().clamp(min=1)
        return p.mul_((scale * grad_output)[:, None]).to(ctx.dtype), None, None, None, None, None


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` of class indices that keeps a sketch of probabilities.

    Forward is torch's; the gradient by the logits is unbiased. Shapes: logits (rows, classes),
    target (rows,) of class indices, `ignore_index` for rows that do not count -> (). Kept: `sketch`
    of the probabilities, rows of `classes` numbers, the key and the targets; `Identity` leaves
    torch's own. Differentiating twice raises RuntimeError. Raises UsageError for another reduction
    than "mean" and "sum" and for logits of another number of axes, TypeError for complex numbers.
    """
    check_real(logits)
    if reduction not in ("mean", "sum") or logits.dim() != 2:
        raise UsageError(
            f"cross_entropy of logits {tuple(logits.shape)} with reduction {reduction!r}: give "
            "(rows, classes), and mean or sum"
        )
    if isinstance(sketch, Identity) or not logits.numel():
        return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)
    result: Tensor = _CrossEntropy.apply(logits, target, ignore_index, reduction, sketch, key)
    return result
