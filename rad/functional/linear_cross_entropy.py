"""The last linear layer and its cross entropy in one, whose logits never stand in memory whole.

Kept between forward and backward: the layer's input, one number a row (the logarithm of its sum of
exponentials), the targets, and the weight and bias (parameters, kept anyway). Not kept: the logits
and their log probabilities, which torch keeps, rows times words each. Both passes work on some rows
at a time; everything is exact, up to the order of sums.

The backward pass forms the logits again: four products in place of torch's three, 0.9 to 1.2 times
torch's time where rows are narrow (64), up to 1.4 times where the products take most of it (512).
Gradients calculated in the forward pass already would need three, but the weight's would then stand
beside the activations from forward to backward, once more where it is scaled, and take more bytes
than the logits where a row has more numbers than there are rows. Nor does a sketch of the input
save anything: the gradient of the input reads the softmax of the logits, for which the input is
needed exactly; where it is kept, the weight's gradient is exact at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.functional.apply import apply
from rad.functional.arguments import check_real, product_dtype, without_autocast
from rad.functional.second_order import will_be_differentiated
from rad.packing.pieces import pieces

Reduction = Literal["mean", "sum"]

ROWS = 128
"""Worked on at a time by default: fewer make the products with a large weight slow."""

CHUNK_BYTES = 1 << 22
"""Of logits, which more than `ROWS` rows are worked on at a time to fill."""

Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class _Options:
    """What the loss is, apart from its tensors, and how many rows are worked on at a time."""

    ignore_index: int
    label_smoothing: float
    reduction: Reduction
    rows: int

    def present(self, targets: Tensor) -> Tensor:
        """Which rows count."""
        return targets.to(torch.int64) != self.ignore_index

    def classes(self, targets: Tensor) -> Tensor:
        """A class for each row (n, 1), the first one for those that do not count."""
        return targets.to(torch.int64).where(self.present(targets), 0).unsqueeze(1)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        options: _Options,
    ) -> Tensor:
        ctx.options = options
        with without_autocast(x):
            total, log_sums = _loss(x, weight, bias, targets, options)
        ctx.save_for_backward(x, weight, bias, targets, log_sums)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        x, weight, bias, targets, log_sums = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        with without_autocast(x):
            rest = (ctx.options, grad_output, needs)
            if will_be_differentiated():
                grads = _differentiable_gradients(x, weight, bias, targets, *rest)
            else:
                grads = _gradients(x, weight, bias, targets, log_sums, *rest)
        return *grads, None, None


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    chunk: int | None = None,
) -> Tensor:
    """`F.cross_entropy(F.linear(x, weight, bias), targets)` that keeps x, and no logits.

    Shapes: x (..., in_features), weight (classes, in_features), targets (...) of any integer type,
    bias (classes,) -> (). All axes of x but the last are rows, where torch's cross entropy takes
    the second one for the classes. `chunk` rows are worked on at a time, by default 128, or as many
    as have 4 MiB of logits. Values and sums of gradients are of float32 at least; the result has
    the type of torch's. Rows whose target is `ignore_index` do not count: a mean over none is NaN.
    For a model's last layer: `linear_cross_entropy(hidden, head.weight, targets, head.bias)`.
    A second derivative is torch's, and forms the logits whole.
    Raises UsageError for class probabilities as targets, targets of another shape, a reduction
    other than "mean" and "sum", a label smoothing outside [0, 1] and a chunk that is no whole
    number of at least 1; TypeError for complex numbers; torch's own error for a target that is no
    class.
    """
    check_real(x)
    _check(x, targets, label_smoothing, reduction, chunk)
    wide, words = accumulation_dtype(product_dtype(x)), max(1, len(weight))
    rows = max(ROWS, CHUNK_BYTES // (words * wide.itemsize)) if chunk is None else chunk
    options = _Options(ignore_index, label_smoothing, reduction, rows)
    autocast = x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    flat = x.reshape(targets.numel(), x.shape[-1]).to(product_dtype(x))
    loss = apply(_LinearCrossEntropy, flat, weight, bias, targets.reshape(-1), options)
    return loss if autocast else loss.to(x.dtype)


def _check(
    x: Tensor, targets: Tensor, label_smoothing: float, reduction: str, chunk: int | None
) -> None:
    """Raise UsageError for what `linear_cross_entropy` does not take."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise UsageError(
            f"targets of {targets.dtype}: give the classes' numbers as integers (of class "
            "probabilities torch.nn.functional.cross_entropy takes the loss)"
        )
    if x.dim() == 0 or targets.shape != x.shape[:-1]:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)} for an input of shape {tuple(x.shape)}: give "
            "a class for each vector of the input"
        )
    if reduction not in get_args(Reduction):
        raise UsageError(f"unknown reduction {reduction!r}: choose 'mean' or 'sum'")
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"a label smoothing of {label_smoothing}: give a number from 0 to 1")
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise UsageError(f"chunks of {chunk} rows: give a whole number of at least 1")


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the type that is accumulated in, and owned: they may be written over."""
    product = F.linear(x, weight, bias)
    return product.to(accumulation_dtype(x.dtype))


def _cast(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
) -> tuple[Tensor, Tensor]:
    """The loss () and, for each row, the logarithm of its sum of exponentials (n,)."""
    wide, smoothing = accumulation_dtype(x.dtype), options.label_smoothing
    weight, bias = _cast(x.dtype, weight, bias)
    log_sums, losses = x.new_empty(len(x), dtype=wide), x.new_empty(len(x), dtype=wide)
    for rows in pieces(range(len(x)), options.rows):
        part = slice(rows.start, rows.stop)
        logits = _logits(x[part], weight, bias)
        expected = logits.gather(1, options.classes(targets[part])).squeeze(1)
        if smoothing:
            expected.mul_(1 - smoothing).add_(logits.mean(1), alpha=smoothing)
        largest = logits.amax(1, keepdim=True)
        sums = logits.sub_(largest).exp_().sum(1)
        log_sums[part] = sums.log_().add_(largest.squeeze(1))
        losses[part] = log_sums[part] - expected
        del logits  # before the next ones
    present = options.present(targets)
    total = losses.where(present, 0).sum()
    return total / present.sum() if options.reduction == "mean" else total, log_sums


def _gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    log_sums: Tensor,
    options: _Options,
    grad_output: Tensor,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """The gradients of x, weight and bias: of the logits it is softmax minus what was expected."""
    needs_input, needs_weight, needs_bias = needs
    smoothing, words = options.label_smoothing, len(weight)
    dtypes = (weight.dtype, weight.dtype if bias is None else bias.dtype)
    weight, bias = _cast(x.dtype, weight, bias)
    present = options.present(targets)
    each = grad_output.to(log_sums.dtype)
    each = each / present.sum() if options.reduction == "mean" else each
    scale = each.expand(len(x)).where(present, 0).unsqueeze(1)
    grad_input = torch.empty_like(x) if needs_input else None
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None
    for rows in pieces(range(len(x)), options.rows):
        part = slice(rows.start, rows.stop)
        grad = _logits(x[part], weight, bias)
        grad.sub_(log_sums[part].unsqueeze(1)).exp_()
        if smoothing:
            grad.sub_(smoothing / words)
        classes = options.classes(targets[part])
        grad.scatter_add_(1, classes, grad.new_full((), smoothing - 1).expand(classes.shape))
        grad.mul_(scale[part])
        if needs_bias:
            of_rows = grad.sum(0)
            grad_bias = of_rows if grad_bias is None else grad_bias.add_(of_rows)
        grad = grad.to(x.dtype)
        if grad_input is not None:
            grad_input[part] = grad.mm(weight)
        if needs_weight:
            grad_weight = _add_product(grad_weight, grad.t(), x[part], log_sums.dtype)
        del grad  # before the next ones
    return (
        grad_input,
        None if grad_weight is None else grad_weight.to(dtypes[0]),
        None if grad_bias is None else grad_bias.to(dtypes[1]),
    )


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left right, in that type; in place where there is a total."""
    if total is None:
        return left.mm(right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left.mm(right))


def _differentiable_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: _Options,
    grad_output: Tensor,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """`_gradients` under `create_graph=True`, by torch."""
    logits = _logits(x, *_cast(x.dtype, weight, bias))
    loss = F.cross_entropy(
        logits,
        targets.to(torch.int64),
        ignore_index=options.ignore_index,
        label_smoothing=options.label_smoothing,
        reduction=options.reduction,
    )
    inputs = zip((x, weight, bias), needs, strict=True)
    wanted = [t for t, need in inputs if need and t is not None]
    found = iter(torch.autograd.grad(loss, wanted, grad_output, create_graph=True))
    return tuple([next(found) if need else None for need in needs])
