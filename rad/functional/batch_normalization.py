"""Batch normalisation that keeps its normalised input, dithered.

Of each channel, n numbers that are normalised together, the gradient by the input is

    grad_x = weight r (grad_output - mean(grad_output) - x_hat mean(grad_output x_hat)),

r the reciprocal of the channel's deviation: quadratic in x_hat, as in
`rad.functional.normalization`. Kept for backward are a `DitheredRounding` q of x_hat, its key and
r, and not x nor the mean, which torch keeps. With weight r grad_output_i D_i^2 / (12 n) added,
D_i the step of the grid that number i lies on, the gradient read from q is unbiased. The gradient
of the weight, the sum of grad_output q, is linear in q, and that of the bias exact.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.backends.operators import as_text, from_text, opaque
from rad.draws.casts import cast
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype
from rad.functional.apply import apart
from rad.functional.arguments import check_real
from rad.functional.dithered import check_quadratic, error_variances, keep_rows, of_rows, piece_of
from rad.functional.second_order import OF_NORM, refused
from rad.packing.pieces import pieces
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity
from rad.sketches.rounding import DitheredRounding


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.batch_norm` that keeps x_hat in a few bits, and r = 1 / deviation.

    Forward is torch's, and so are the running statistics. Gradients by x and the weight are
    unbiased, that by the bias exact (formulas: `rad.functional.batch_normalization`). Kept:
    `sketch` of x_hat, r of each channel (float32 at least) and the key; `Identity` leaves torch's
    own, and so does `training=False`. The rows of the sketch are the positions of
    each example's channel, or an example's channels where there are no positions: images of few
    positions are kept in fewer bytes with a `block` of, say, 1024.
    Shapes: x (N, C, *), all others (C,) -> as x. The result is contiguous, or as torch's.
    Differentiating twice raises RuntimeError. Raises UsageError for sketches other than
    `DitheredRounding` and `Identity`, ValueError for one value a channel, as torch, and TypeError
    for complex numbers.
    """
    check_real(x)
    check_quadratic(sketch)
    if isinstance(sketch, Identity) or not training or x.dim() < 2 or x.numel() <= x.shape[1]:
        return F.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )  # and torch's errors
    running = running_mean, running_var
    output, *updated = _BatchNorm.apply(
        *apart(x, weight, bias), *running, momentum, eps, sketch, key
    )
    for statistic, new in zip(running, updated, strict=True):
        if statistic is not None:
            statistic.copy_(new)
    result: Tensor = output
    return result


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        sketch: DitheredRounding,
        key: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sketch, ctx.dtype = sketch, x.dtype
        statistics = running_mean, running_var, momentum, eps
        keeps = any(ctx.needs_input_grad[:2])
        arguments = x, weight, bias, *statistics, keeps, key
        if torch.compiler.is_compiling():
            output, mean, var, *kept = _batch_norm(*arguments, as_text(sketch))
        else:
            output, mean, var, *kept = _value_and_kept(*arguments, sketch)
        if keeps and not ctx.needs_input_grad[0]:
            kept = kept[1:]  # r serves the gradient by x alone
        ctx.save_for_backward(weight, key, *kept)
        ctx.mark_non_differentiable(mean, var)
        return output, mean, var

    @staticmethod
    @refused(OF_NORM)
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weight, key, *kept = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        arguments = grad_output, weight, kept, key, wanted, ctx.dtype
        if torch.compiler.is_compiling():
            found = _batch_norm_backward(*arguments, as_text(ctx.sketch))
        else:
            found = gradients(*arguments, ctx.sketch)
        grads = [grad if is_wanted else None for grad, is_wanted in zip(found, wanted, strict=True)]
        return *grads, *[None] * 6


@opaque()
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    keeps: bool,
    key: Tensor,
    sketch: str,
) -> list[Tensor]:
    statistics = running_mean, running_var, momentum, eps
    return _value_and_kept(x, weight, bias, *statistics, keeps, key, from_text(sketch))


@opaque()
def _batch_norm_backward(
    grad_output: Tensor,
    weight: Tensor | None,
    kept: list[Tensor],
    key: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
    sketch: str,
) -> list[Tensor]:
    return gradients(grad_output, weight, kept, key, wanted, dtype, from_text(sketch))


def rows_shape(shape: torch.Size) -> tuple[int, int]:
    """The rows of a sketch of x (N, C, *): (N C, L), or (N, C) as it is."""
    batch, channels, *space = shape
    return (batch * channels, math.prod(space)) if space else (batch, channels)


def _value_and_kept(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    keeps: bool,
    key: Tensor,
    sketch: DitheredRounding,
) -> list[Tensor]:
    """The result, the new running statistics (empty for None); r (C,) and the sketch of x_hat."""
    wide = accumulation_dtype(x.dtype)
    new_mean, new_var = (None if s is None else s.clone() for s in (running_mean, running_var))
    output, mean, r = torch.native_batch_norm(
        x, weight, bias, new_mean, new_var, True, momentum, eps
    )
    updated = [x.new_empty(0) if s is None else s for s in (new_mean, new_var)]
    if not keeps:
        return [output, *updated]
    x = x.detach()
    if mean.dtype != wide:
        axes = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x.to(wide), axes, correction=0)
        r = variance.add_(eps).rsqrt_()
    rows, is_flat = x.reshape(rows_shape(x.shape)), x.dim() == 2
    means, scales = (s[None] if is_flat else s.expand(len(x), -1).reshape(-1, 1) for s in (mean, r))

    def normalised(part: range) -> Tensor:
        of_rows = slice(None) if is_flat else slice(part.start, part.stop)
        numbers = rows[part.start : part.stop].to(wide)
        return (numbers - means[of_rows]).mul_(scales[of_rows])

    return [output, *updated, r, *keep_rows(sketch, normalised, rows_shape(x.shape), r, key)]


def gradients(
    grad_output: Tensor,
    weight: Tensor | None,
    kept: list[Tensor],
    key: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
    sketch: DitheredRounding,
) -> list[Tensor]:
    """The gradients by x (of that dtype), weight and bias; empty where one is not `wanted`.

    `kept` holds r where the first is wanted, and the sketch of x_hat. Some examples are read at a
    time, twice where there are more: first for the sums of the channels.
    """
    grad = grad_output.reshape(*grad_output.shape[:2], -1)  # (N, C, L)
    batch, channels, space = grad.shape
    wide = accumulation_dtype(dtype)
    r, sketched = (kept[0] if wanted[0] else None), tuple(kept[1:] if wanted[0] else kept)
    cut = pieces(range(batch), piece_of(grad) // max(1, channels * space))
    is_flat = grad_output.dim() == 2
    shape = rows_shape(grad_output.shape)
    each = 1 if is_flat else channels  # rows of an example

    def read(part: range) -> tuple[Tensor, Tensor, range]:
        """grad_output and q of those examples, (n, C, L), and the rows that they are."""
        rows = range(part.start * each, part.stop * each)
        g = grad[part.start : part.stop].to(wide).contiguous()
        return g, sketch.decompress(sketched, shape, wide, key, rows).view(g.shape), rows

    total, product = (grad.new_zeros(channels, dtype=wide) for _ in range(2))
    for part in cut:
        if sketched:
            g, q, rows = read(part)
            sums = _sums(g, q)
            total += sums[0]
            product += sums[1]
        else:
            total += grad[part.start : part.stop].to(wide).sum((0, 2))
    by_x = grad.new_empty(grad.shape if r is not None else 0, dtype=dtype)
    if r is not None:
        n = batch * space
        scale = r if weight is None else r * weight.detach().to(wide)
        factors = scale, scale * product / n, scale * total / n
        extras = error_variances(sketched, wide) / n
        for part in cut:
            g, q, rows = (g, q, rows) if len(cut) == 1 else read(part)
            extra = of_rows(sketch, extras, q.view(-1, shape[1]), rows)
            target = by_x[part.start : part.stop]
            out = target if dtype == wide else torch.empty_like(target, dtype=wide)
            _combine(g, q, *factors, extra, is_flat, out)
            if out is not target:
                short = cast(out.view(-1, shape[1]), dtype, key, READ, rows)
                target.copy_(short.view(g.shape))
    parameters = [product, total]
    if weight is not None:
        parameters = [parameter.to(weight.dtype) for parameter in parameters]
    return [by_x.view(grad_output.shape) if r is not None else by_x, *parameters]


def _sums(g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of g and of g q, (n, C, L), over all but channels: (C,)."""
    n, channels, space = g.shape
    if space == 1 or not (backends.in_loops(q) and q.numel()):
        return g.sum((0, 2)), (g * q).sum((0, 2))
    from rad.functional import norm_loops as loops

    total, product = (g.new_empty(n, channels) for _ in range(2))
    left, read = (each.view(-1, space).numpy() for each in (g, q))
    loops.sums(left, read, total.view(-1).numpy(), product.view(-1).numpy())
    return total.sum(0), product.sum(0)


def _combine(
    g: Tensor,
    q: Tensor,
    scale: Tensor,
    slope: Tensor,
    constant: Tensor,
    extra: Tensor,
    is_flat: bool,
    out: Tensor,
) -> None:
    """scale g (1 + extra) - slope q - constant, (n, C, L), into `out`; factors (C,)."""
    n, channels, space = g.shape
    if space == 1 or not (backends.in_loops(q) and q.numel()):
        extra = extra[..., None] if is_flat else extra.view(n, channels, -1)
        found = torch.addcmul(g, g, extra).mul_(scale[:, None]).sub_(constant[:, None])
        torch.addcmul(found, q, slope[:, None], value=-1, out=out)
        return
    from rad.functional import norm_loops as loops

    left, read, target = (each.view(-1, space).numpy() for each in (g, q, out))
    a, b, c = (each.numpy() for each in (scale, slope, constant))
    loops.combine(left, read, a, b, c, extra.contiguous().numpy(), target)
