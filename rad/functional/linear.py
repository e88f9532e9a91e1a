"""Linear layer whose backward pass remembers a sketch of the input.

Kept between forward and backward: the sketch of the input, its key, and the
weight (a parameter, kept anyway). Not kept: the input itself. The gradients of
input and bias are exact; that of the weight is grad_output^T x_hat, unbiased
because it is linear in x_hat (paper, section 4).
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.dtypes import accumulation_dtype
from rad.functional.arguments import check_real, product_dtype
from rad.functional.keeping import keep
from rad.functional.scaling import normalised
from rad.functional.second_order import OF_WEIGHT, refuse, will_be_differentiated
from rad.sketches.base import Sketch, squared_norm
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
    rows, out_features = grad_output.shape
    wide = accumulation_dtype(grad_output.dtype)
    total = kept[0].new_empty(out_features, d, dtype=wide)
    for number, piece in enumerate(_pieces(rows, d * wide.itemsize)):
        x_hat = sketch.decompress(kept, (rows, d), wide, key, piece)
        part = grad_output[piece.start : piece.stop].t().to(wide)
        total.addmm_(part, x_hat, beta=min(number, 1))
    return total.to(grad_output.dtype)


def _pieces(rows: int, row_bytes: int) -> list[range]:
    """The rows in two pieces, in more where one would be large, in one where it is small."""
    halves = rows if rows * row_bytes <= SMALL_BYTES else -(-rows // 2)
    step = max(1, min(halves, PIECE_BYTES // row_bytes))
    return [range(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


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
    wide = accumulation_dtype(grad_output.dtype)
    product = grad_output.t().to(wide) @ columns.to(wide)
    if sketch.spreads_in_kernels(product, key):
        from rad.kernels.sampling import spread

        return spread(product, key, d, grad_output.dtype)
    indices = sketch.indices((len(columns), d), key)
    total = product.new_zeros(len(product), d)
    total.index_add_(1, indices, product.mul_(d / len(indices)))
    return total.to(grad_output.dtype)


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
    total = columns.new_empty(grad_output.shape[1], d, dtype=wide)
    pieces = _pieces(len(columns), d * wide.itemsize)
    buffer = columns.new_empty(len(pieces[0]), d, dtype=wide)
    for number, piece in enumerate(pieces):
        part = slice(piece.start, piece.stop)
        scattered = buffer[: len(piece)].zero_()
        indices = sketch.indices((len(columns), d), key, piece)
        scattered.scatter_add_(1, indices, columns[part].to(wide))
        transposed = grad_output[part].t().to(wide)
        scale = d / columns.shape[1]
        total.addmm_(transposed, scattered, beta=min(number, 1), alpha=scale)
    return total.to(grad_output.dtype)


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
    wide = accumulation_dtype(grad_output.dtype)
    product = grad_output.t().to(wide) @ kept[0].to(wide)
    return sketch.spread(product, d, key).to(grad_output.dtype)


@weight_grad.register
def _(
    sketch: ImportanceSampling, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, key: Tensor
) -> Tensor:
    rows, drawn = kept
    wide = accumulation_dtype(grad_output.dtype)
    of_drawn = grad_output.index_select(0, drawn).t().to(wide)
    return (of_drawn @ rows.to(wide)).to(grad_output.dtype)


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
