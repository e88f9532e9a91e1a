"""Linear layer whose backward pass remembers a sketch of the input.

Kept between forward and backward: the sketch of the input, its key, and the
weight (a parameter, kept anyway). Not kept: the input itself. The gradients of
input and bias are exact; that of the weight is grad_output^T x_hat, unbiased
because it is linear in x_hat (paper, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.arguments import check_real, product_dtype
from rad.functional.keeping import keep
from rad.functional.scaling import normalised
from rad.functional.second_order import OF_WEIGHT, refuse, will_be_differentiated
from rad.operators import as_text, from_text, opaque
from rad.sketches.base import Sketch, accumulation_dtype, joined, pieces, squared_norm
from rad.sketches.identity import Identity
from rad.sketches.importance import ImportanceSampling
from rad.sketches.projection import DifferentProject, Project
from rad.sketches.rotation import RotatedRounding
from rad.sketches.rounding import Rounding
from rad.sketches.sampled_rounding import SampledRounding
from rad.sketches.sampling import DifferentSample, SameSample

PIECE_BYTES = 1 << 22
"""The most into which a sketch is read densely at a time."""

SMALL_BYTES = 1 << 18
"""What is read densely at once."""

WIDENED_BYTES = 1 << 19
"""What bfloat16 and float16 take as float32, in which sums run, at a time."""


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
        ctx.sketch = sketch
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        ctx.weight_dtype, ctx.bias_dtype = weight.dtype, bias.dtype if bias is not None else None
        ctx.save_for_backward(key, weight if ctx.needs_input_grad[0] else None, *kept)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, weight, *kept = ctx.saved_tensors
        grad = grad_output
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:  # first: the input's gradient then stands beside no reading
            grad_weight = _weight_grad(ctx, grad, kept, key).to(ctx.weight_dtype)
        if ctx.needs_input_grad[0]:
            grad_input = (grad @ weight.to(grad.dtype)).to(ctx.input_dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0).to(ctx.bias_dtype)
        return grad_input, grad_weight, grad_bias, None, None, *[None for _ in kept]


def _weight_grad(ctx: Any, grad_output: Tensor, kept: list[Tensor], key: Tensor) -> Tensor:
    """`weight_grad` as it can be compiled, and differentiated or not."""
    sketch, d = ctx.sketch, ctx.input_shape[-1]
    if isinstance(sketch, Identity):
        return grad_output.t() @ kept[0].to(grad_output.dtype)
    if torch.compiler.is_compiling():
        return _linear_weight_grad(grad_output, kept, d, key, as_text(sketch))
    with torch.no_grad():
        gradient = weight_grad(sketch, grad_output, tuple(kept), d, key)
    if not will_be_differentiated():
        return gradient
    is_constant = not (grad_output.requires_grad or ctx.needs_input_grad[0])
    return gradient if is_constant else refuse(gradient, OF_WEIGHT)


@opaque()
def _linear_weight_grad(
    grad_output: Tensor, kept: list[Tensor], d: int, key: Tensor, sketch: str
) -> Tensor:
    return weight_grad(from_text(sketch), grad_output, tuple(kept), d, key)


def keep_for_linear(x: Tensor, weight: Tensor, sketch: Sketch, key: Tensor) -> tuple[Tensor, ...]:
    """What `linear` keeps of x, to be given to it as `kept`; nothing if the weight is frozen."""
    check_real(x)
    if not (weight.requires_grad and torch.is_grad_enabled()) or x.shape[-1] == 0:
        return ()
    return keep(sketch, _rows(x), key, product_dtype(x))


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
    check_real(x)
    if x.shape[-1] == 0:
        return F.linear(x, weight, bias)
    kept = keep_for_linear(x, weight, sketch, key) if kept is None else kept
    result: Tensor = _SketchedLinear.apply(_rows(x), weight, bias, sketch, key, *kept)
    return result.view(*x.shape[:-1], len(weight))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


@singledispatch
def weight_grad(
    sketch: Sketch, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    """grad_output^T x_hat, for the x_hat that `kept` is a sketch of.

    Shapes: grad_output (n, out_features); x_hat (n, d) -> (out_features, d).
    Without a shortcut for the sketch, x_hat is read a piece of the rows at a time.
    """
    return by_pieces(sketch, grad_output, kept, d, key)


def by_pieces(
    sketch: Sketch, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    """`weight_grad`, of any sketch."""
    rows = len(grad_output)
    wide = accumulation_dtype(grad_output.dtype)

    def product(grad: Tensor) -> Tensor:
        total = kept[0].new_empty(grad.shape[1], d, dtype=wide)
        for number, piece in enumerate(_pieces(grad, d)):
            x_hat = sketch.decompress(kept, (rows, d), wide, key, piece)
            part = grad[piece.start : piece.stop].t().to(wide)
            total.addmm_(part, x_hat, beta=min(number, 1))
        return total

    return _by_outputs(product, grad_output, d)


def _pieces(grad_output: Tensor, d: int) -> list[range]:
    """The rows in which a reading (rows, d) meets those gradients (rows, out_features).

    Two pieces, more where one would be large, one where it is small; of a short type as many as
    are widened at a time.
    """
    rows, out_features = grad_output.shape
    wide = accumulation_dtype(grad_output.dtype)
    if grad_output.dtype != wide:
        return pieces(range(rows), WIDENED_BYTES // ((d + out_features) * wide.itemsize))
    row_bytes = d * wide.itemsize
    halves = rows if rows * row_bytes <= SMALL_BYTES else -(-rows // 2)
    return pieces(range(rows), min(halves, PIECE_BYTES // row_bytes))


def _by_outputs(product: Callable[[Tensor], Tensor], grad_output: Tensor, d: int) -> Tensor:
    """`product(grad_output)`, (out_features, d) sums, in the type of grad_output.

    Of a short type some outputs at a time, whose sums take no more than x did.
    """
    rows, out_features = grad_output.shape
    wide = accumulation_dtype(grad_output.dtype)
    if grad_output.dtype == wide:
        return product(grad_output)
    room = max(WIDENED_BYTES, rows * d * grad_output.dtype.itemsize)
    blocks = pieces(range(out_features), room // (d * wide.itemsize))
    columns = (grad_output[:, block.start : block.stop] for block in blocks)
    return joined((product(part).to(grad_output.dtype) for part in columns), out_features)


def _widened_product(grad_output: Tensor, x: Tensor) -> Tensor:
    """grad_output^T x, (out_features, k), as sums of float32 at least."""
    wide = accumulation_dtype(grad_output.dtype)
    if grad_output.dtype == wide:
        return grad_output.t() @ x.to(wide)
    total = x.new_zeros(grad_output.shape[1], x.shape[1], dtype=wide)
    for piece in _pieces(grad_output, x.shape[1]):
        here = slice(piece.start, piece.stop)
        total.addmm_(grad_output[here].t().to(wide), x[here].to(wide))
    return total


@weight_grad.register
def _(
    sketch: Identity, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    return grad_output.t() @ kept[0]


@weight_grad.register
def _(
    sketch: SameSample, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    (columns,) = kept

    def product(grad: Tensor) -> Tensor:
        of_columns = _widened_product(grad, columns)
        if sketch.spreads_in_kernels(of_columns, key):
            from rad.kernels.sampling import spread

            return spread(of_columns, key, d, grad.dtype)
        indices = sketch.indices((len(columns), d), key)
        total = of_columns.new_zeros(len(of_columns), d)
        return total.index_add_(1, indices, of_columns.mul_(d / len(indices)))

    return _by_outputs(product, grad_output, d)


@weight_grad.register
def _(
    sketch: DifferentSample, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    (columns,) = kept
    if sketch.spreads_in_kernels(columns, key):
        from rad.kernels import weight_grad as kernel

        if kernel.pays(grad_output, columns, d):
            return kernel.sampled(grad_output, columns, key, d)
        return by_pieces(sketch, grad_output, kept, d, key)
    wide = accumulation_dtype(grad_output.dtype)

    def product(grad: Tensor) -> Tensor:
        total = columns.new_empty(grad.shape[1], d, dtype=wide)
        cut = _pieces(grad, d)
        buffer = columns.new_empty(len(cut[0]), d, dtype=wide)
        for number, piece in enumerate(cut):
            part = slice(piece.start, piece.stop)
            scattered = sketch.add_to(buffer[: len(piece)].zero_(), columns[part], key, piece)
            transposed = grad[part].t().to(wide)
            scale = d / columns.shape[1]
            total.addmm_(transposed, scattered, beta=min(number, 1), alpha=scale)
        return total

    return _by_outputs(product, grad_output, d)


@weight_grad.register
def _(
    sketch: Rounding, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    if sketch.in_kernels(kept[-1], key) and kept[-1].dtype != torch.float64:
        from rad.kernels import weight_grad as kernel

        if kernel.rounded_pays(grad_output, d):
            return kernel.rounded(grad_output, kept, key, d, sketch)
    return by_pieces(sketch, grad_output, kept, d, key)


@weight_grad.register
def _(
    sketch: Project, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    def product(grad: Tensor) -> Tensor:
        return sketch.spread(_widened_product(grad, kept[0]), d, key)

    return _by_outputs(product, grad_output, d)


@weight_grad.register
def _(
    sketch: ImportanceSampling, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    rows, drawn = kept
    of_drawn = grad_output.index_select(0, drawn)
    return _by_outputs(lambda grad: _widened_product(grad, rows), of_drawn, d)


def linear_noise_weights(x: Tensor, grad_output: Tensor) -> Tensor:
    """By what the variance of each number of x counts in that of dW: (rows, 1).

    For errors that are uncorrelated: |grad_output_n|^2 for the numbers of row n.
    """
    grad = grad_output.detach().reshape(-1, grad_output.shape[-1])
    return grad.to(accumulation_dtype(x.dtype)).square().sum(1, keepdim=True)


def linear_weight_grad_variance(x: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
    """E |dW_hat - dW|^2 over the keys, dW = grad_output^T x, in closed form: shape ().

    With F = |dW|^2 and S = sum over rows of |grad_output_n|^2 |x_n|^2: r F where
    all rows share one draw (their noises add up as the gradient itself does) and
    r S where each row has its own, r being the sketch's relative variance. Rounding has
    uncorrelated errors, rotated or not: sum over rows of |grad_output_n|^2 times their
    variances, on top of the sampling's where columns are sampled too. Importance
    sampling gives row n the random factor c_n:
    sum_nm Cov(c_n, c_m) <grad_output_n, grad_output_m> <x_n, x_m>.
    Numbers of any size are normalised first; the result is float64.
    Shapes: x (..., d), grad_output (..., out_features). Raises TypeError for a
    sketch without a closed form here.
    """
    wide = accumulation_dtype(x.dtype)
    x, x_scale = normalised(x.reshape(-1, x.shape[-1]).to(wide))
    grad, grad_scale = normalised(grad_output.reshape(-1, grad_output.shape[-1]).to(wide))
    return variance_in_range(x, grad, sketch).double() * x_scale**2 * grad_scale**2


def variance_in_range(x: Tensor, grad: Tensor, sketch: Sketch) -> Tensor:
    """`linear_weight_grad_variance` of rows whose squares are in range, in their dtype.

    Shapes: x (rows, d), grad (rows, out_features), in float32 at least.
    """
    match sketch:
        case Identity():
            return x.new_zeros(())
        case SameSample() | Project():
            return sketch.relative_variance(x.shape[1]) * squared_norm(grad.t() @ x)
        case DifferentSample() | DifferentProject():
            row_products = grad.square().sum(1) @ x.square().sum(1)
            return sketch.relative_variance(x.shape[1]) * row_products
        case Rounding():
            return (linear_noise_weights(x, grad) * sketch.element_variance(x)).sum()
        case RotatedRounding():
            return (linear_noise_weights(x, grad) * sketch.rotated_variance(x)).sum()
        case SampledRounding():
            rounding = (linear_noise_weights(x, grad) * sketch.element_variance(x)).sum()
            return rounding + variance_in_range(x, grad, sketch.sample)
        case ImportanceSampling():
            products = (grad @ grad.t()) * (x @ x.t())
            return (sketch.weight_covariance(x) * products).sum().to(x.dtype)
    raise TypeError(f"no closed-form weight gradient variance for {type(sketch).__name__}")
