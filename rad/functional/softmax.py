"""A softmax that keeps one dithered copy of its result.

Of each row of d numbers, p = softmax(x), the gradient by x is

    grad_x = p (grad_output - <p, grad_output>),

quadratic in p. Kept for backward is a `DitheredRounding` q of p, and its key: not p, which torch
keeps. Since E[q_i q_j] = p_i p_j, but for E[q_i^2] = p_i^2 + D_i^2 / 12
(`rad.functional.dithered`),

    q_i (g_i - <q, g>) + g_i D_i^2 / 12,   g = grad_output,

is unbiased. Where x is minus infinity (a mask), p is 0 and so is the gradient. What is read there
is 0 on average; with `zero_code` it is 0 exactly, at the price of one level of the grid.

The variance. With e_i = q_i - p_i independent, uniform and of variance v_i = D_i^2 / 12, and
S = <p, g>, the error of the i-th gradient is

    e_i (g_i - S) - p_i sum_j g_j e_j - e_i sum_{j != i} g_j e_j - g_i (e_i^2 - v_i).

Odd moments vanish, and the variance of e_i^2 is 4 v_i^2 / 5. With A = sum g_j^2 v_j and
V = sum v_j the errors' mean squares add up to

    sum v_i (g_i - S)^2 + A |p|^2 - 2 sum p_i (g_i - S) g_i v_i + V A - sum g_i^2 v_i^2 / 5.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.backends.operators import as_text, from_text, opaque
from rad.draws.casts import cast
from rad.draws.reference import KEY_BYTES, READ
from rad.dtypes import accumulation_dtype
from rad.functional.arguments import check_real
from rad.functional.dithered import (
    check_quadratic,
    error_variances,
    keep_last_axis,
    number_variances,
    of_rows,
    piece_of,
)
from rad.functional.second_order import OF_SOFTMAX, refused
from rad.functional.strided import numbers
from rad.packing.pieces import pieces
from rad.sketches.base import Sketch, rows_of
from rad.sketches.identity import Identity
from rad.sketches.rounding import DitheredRounding


def softmax(x: Tensor, dim: int, *, sketch: Sketch, key: Tensor) -> Tensor:
    """`torch.nn.functional.softmax` that keeps its result in a few bits.

    Forward is torch's; the gradient by x is unbiased (formula: `rad.functional.softmax`), with the
    variance `softmax_grad_variance`. Kept: `sketch` of the result as rows along `dim`, on grids of
    float32 at least, and the key (`softmax_nbytes`); `Identity` leaves torch's own. With
    `zero_code` the gradient is exactly 0 where the result is (of masks), without it 0 on average.
    Shapes: any -> as x. Differentiating twice raises RuntimeError. Raises UsageError for sketches
    other than `DitheredRounding` and `Identity`, TypeError for complex numbers, and IndexError for
    an axis that x does not have.
    """
    check_real(x)
    check_quadratic(sketch)
    keeps = x.requires_grad and torch.is_grad_enabled()
    if isinstance(sketch, Identity) or not keeps or x.dim() == 0:
        return F.softmax(x, dim)
    result: Tensor = _Softmax.apply(x, dim, sketch, key)
    return result


def softmax_nbytes(x: Tensor, dim: int, sketch: Sketch) -> int:
    """Bytes that a call of `softmax` keeps of x; of `Identity`, those of torch's result."""
    if isinstance(sketch, Identity):
        return x.numel() * x.element_size()
    rows = x.movedim(dim, -1).shape
    return KEY_BYTES + sketch.nbytes(rows, accumulation_dtype(x.dtype))


def softmax_grad_variance(x: Tensor, grad_output: Tensor, sketch: Sketch, dim: int = -1) -> Tensor:
    """E |grad_x_hat - grad_x|^2 over the keys, in closed form: float64, shape ().

    Formula: `rad.functional.softmax`. Zero for `Identity`; raises UsageError for other sketches
    than `DitheredRounding`.
    """
    p = F.softmax(x.detach(), dim).movedim(dim, -1)
    p = p.to(accumulation_dtype(p.dtype)).contiguous()
    v = number_variances(sketch, p).double()
    p, g = p.double(), grad_output.detach().movedim(dim, -1).double()
    a = (g.square() * v).sum(-1)
    centred = g - (g * p).sum(-1, keepdim=True)
    squares = (v * centred.square() - 2 * p * centred * g * v - (g * v).square() / 5).sum(-1)
    return (squares + a * (p.square().sum(-1) + v.sum(-1))).sum()


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, sketch: DitheredRounding, key: Tensor) -> Tensor:
        ctx.dim, ctx.sketch, ctx.dtype = dim, sketch, x.dtype
        if torch.compiler.is_compiling():
            output, *kept = _softmax(x, key, dim, as_text(sketch))
        else:
            output, *kept = _value_and_kept(x, key, dim, sketch)
        ctx.save_for_backward(key, *kept)
        return output

    @staticmethod
    @refused(OF_SOFTMAX)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, *kept = ctx.saved_tensors
        arguments = grad_output, kept, key, ctx.dim, ctx.dtype
        if torch.compiler.is_compiling():
            by_x = _softmax_backward(*arguments, as_text(ctx.sketch))
        else:
            by_x = _gradient(*arguments, ctx.sketch)
        return by_x, None, None, None


@opaque()
def _softmax(x: Tensor, key: Tensor, dim: int, sketch: str) -> list[Tensor]:
    return _value_and_kept(x, key, dim, from_text(sketch))


@opaque()
def _softmax_backward(
    grad_output: Tensor, kept: list[Tensor], key: Tensor, dim: int, dtype: torch.dtype, sketch: str
) -> Tensor:
    return _gradient(grad_output, kept, key, dim, dtype, from_text(sketch))


def _value_and_kept(x: Tensor, key: Tensor, dim: int, sketch: DitheredRounding) -> list[Tensor]:
    """The result, and what `sketch` keeps of it."""
    output = F.softmax(x, dim)
    return [output, *keep_last_axis(sketch, output.detach().movedim(dim, -1), key)]


def _gradient(
    grad_output: Tensor,
    kept: list[Tensor],
    key: Tensor,
    dim: int,
    dtype: torch.dtype,
    sketch: DitheredRounding,
) -> Tensor:
    """The gradient by x, of that type. Some rows are read at a time."""
    grad = grad_output.movedim(dim, -1)
    n, d = len(rows_of(grad.shape)), grad.shape[-1]
    wide, sketched = accumulation_dtype(grad.dtype), tuple(kept)
    by_x = grad.new_empty(n, d, dtype=dtype)
    variances = error_variances(sketched, wide)
    for rows in pieces(range(n), piece_of(grad) // max(1, d)) if grad.numel() else []:
        q = sketch.decompress(sketched, (n, d), wide, key, rows)
        g = numbers(grad, slice(rows.start * d, rows.stop * d)).view(q.shape).to(wide)
        target = by_x[rows.start : rows.stop]
        out = target if dtype == wide else q
        rows_gradient(g, q, of_rows(sketch, variances, q, rows), out)
        if out is q:
            target.copy_(cast(q, dtype, key, READ, rows))
    return by_x.view(grad.shape).movedim(-1, dim)


def rows_gradient(g: Tensor, q: Tensor, extra: Tensor, out: Tensor) -> Tensor:
    """q (g - <q, g>) + g extra of rows (n, d), into `out`, which may be q; extra (n, 1 or d)."""
    if backends.in_loops(q) and q.numel():
        from rad.functional import softmax_loops as loops

        left, read, found = g.contiguous().numpy(), q.numpy(), out.numpy()
        loops.gradient(left, read, extra.contiguous().numpy(), found)
        return out
    slope = (q * g).sum(1, keepdim=True)
    return torch.mul(q, g - slope, out=out).addcmul_(g, extra)
