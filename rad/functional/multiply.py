"""The product of two tensors, number by number, that keeps sketches of its factors.

Kept for backward are a sketch of y, for the gradient by x, and one of x, for the gradient by y,
with draws of their own; not x and y, which torch keeps. Each gradient, grad_output * y_hat summed
to the shape of x, is linear in what it reads: unbiased with any sketch. A factor that is a
parameter, or of which a sketch would take more bytes (a small one that is broadcast), is kept as
it is, and the gradient that it gives is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.casts import cast
from rad.draws.dispatch import fold_in
from rad.draws.reference import KEY_BYTES, READ
from rad.dtypes import accumulation_dtype
from rad.functional.apply import apart
from rad.functional.arguments import check_real
from rad.functional.compression import keep
from rad.functional.dithered import piece_of
from rad.functional.elementwise import derivative_rows, times_derivative
from rad.functional.second_order import OF_PRODUCT, refused
from rad.packing.pieces import joined, pieces
from rad.sketches.base import Sketch, rows_of
from rad.sketches.identity import Identity
from rad.sketches.noise import Numbers

Sizes = tuple[int, ...]

_EXACTLY = Identity()


def multiply(x: Tensor, y: Tensor, *, sketch: Sketch, key: Tensor) -> Tensor:
    """`x * y` that keeps a sketch of each factor whose partner needs a gradient.

    Forward is torch's. Gradients are unbiased, with the variances `multiply_grad_variances`. Kept
    (`multiply_nbytes`): the key, and `sketch` of y for the gradient by x, and of x for that by y,
    in the factor's own shape and type: its rows are those of the last axis, or of all axes from
    the third on where there are more than three (channels of an image). Factors that are
    parameters, and those that a sketch would not shorten, are kept as they are; so are all with
    `Identity`, where the product is torch's own. Of x * x one sketch is kept, for both gradients.
    Shapes: any two that broadcast -> as torch's. Differentiating twice raises RuntimeError, unless
    the product is torch's own. Raises TypeError for numbers that are not real floating-point ones,
    and RuntimeError for shapes that do not broadcast.
    """
    check_real(x)
    check_real(y)
    sketches = _sketch_of(sketch, y), _sketch_of(sketch, x)
    wanted = [factor.requires_grad and torch.is_grad_enabled() for factor in (x, y)]
    if all(isinstance(s, Identity) for s, w in zip(sketches, wanted, strict=True) if w):
        return x * y
    result: Tensor = _Multiply.apply(*apart(x, y), x is y, *sketches, key)
    return result


def _sketch_of(sketch: Sketch, x: Tensor) -> Sketch:
    """What a factor is kept by: exactly, where that takes no more bytes."""
    if isinstance(x, nn.Parameter) or x.dim() == 0:
        return _EXACTLY
    is_shorter = sketch.nbytes(tuple(derivative_rows(x).shape), x.dtype) < x.nbytes
    return sketch if is_shorter else _EXACTLY


def multiply_nbytes(x: Tensor, y: Tensor, sketch: Sketch) -> int:
    """Bytes that a call of `multiply` keeps, parameters aside."""
    pairs = [(x, y)] if x is y else [(x, y), (y, x)]
    others = [other for factor, other in pairs if factor.requires_grad]
    kept = [
        0 if isinstance(x, nn.Parameter) else used.nbytes(tuple(derivative_rows(x).shape), x.dtype)
        for x in others
        for used in [_sketch_of(sketch, x)]
    ]
    is_torchs = all(isinstance(_sketch_of(sketch, x), Identity) for x in others)
    return sum(kept) + (0 if is_torchs else KEY_BYTES)


def multiply_grad_variances(
    x: Tensor, y: Tensor, grad_output: Tensor, sketch: Sketch
) -> tuple[Tensor, Tensor]:
    """E |grad_hat - grad|^2 of the gradients by x and by y, in closed form: float64, shapes ().

    Of the gradient by x, the sum of grad_output^2 times the variance of each number kept of y: no
    two of the products that one entry sums have the same number of y. Of x * x the gradient is
    not the sum of two of these: what is kept is read twice. Raises TypeError for sketches whose
    errors are not those of single numbers (`rad.sketches.noise.Numbers` without a rotation).
    """
    return _variance(y, grad_output, sketch), _variance(x, grad_output, sketch)


def _variance(other: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
    total = grad_output.new_zeros((), dtype=torch.float64)
    used, rows = _sketch_of(sketch, other), derivative_rows(other.detach())
    for part in used.noise(rows.shape[-1]):
        if not isinstance(part, Numbers) or part.rotation is not None:
            raise TypeError(f"no closed-form gradient variance for {type(sketch).__name__}")
        variance = part.source.element_variance(rows).double().view(other.shape)
        total += part.factor * (grad_output.double().square() * variance).sum()
    return total


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, is_square: bool, of_y: Sketch, of_x: Sketch, key: Tensor
    ) -> Tensor:
        ctx.is_square, ctx.of_y, ctx.of_x = is_square, of_y, of_x
        ctx.shapes, ctx.dtypes = (x.shape, y.shape), (x.dtype, y.dtype)
        by_x, by_y = ctx.needs_input_grad[:2]
        kept_y = _keep(of_y, y, fold_in(key, 0)) if by_x else ()
        kept_x = _keep(of_x, x, fold_in(key, 1)) if by_y and not is_square else ()
        ctx.parts = len(kept_y)
        ctx.save_for_backward(key, *kept_y, *kept_x)
        return x * y

    @staticmethod
    @refused(OF_PRODUCT)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, *kept = ctx.saved_tensors
        (x, y), (x_dtype, y_dtype) = ctx.shapes, ctx.dtypes
        by_x = by_y = None
        if ctx.needs_input_grad[0]:
            of_y = kept[: ctx.parts], fold_in(key, 0)
            by_x = _gradient(grad_output, *of_y, list(y), list(x), x_dtype, ctx.of_y)
        if ctx.is_square:
            by_x = by_x * 2 if by_x is not None else None
        elif ctx.needs_input_grad[1]:
            of_x = kept[ctx.parts :], fold_in(key, 1)
            by_y = _gradient(grad_output, *of_x, list(x), list(y), y_dtype, ctx.of_x)
        return by_x, by_y, None, None, None, None


def _keep(sketch: Sketch, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    rows = x if isinstance(sketch, Identity) else derivative_rows(x)
    return keep(sketch, rows, key, x.dtype)


def _gradient(
    grad_output: Tensor,
    kept: list[Tensor],
    key: Tensor,
    other: list[int],
    shape: list[int],
    dtype: torch.dtype,
    sketch: Sketch,
) -> Tensor:
    if torch.compiler.is_compiling():
        return _multiply_backward(grad_output, kept, key, other, shape, dtype, as_text(sketch))
    return gradient(grad_output, kept, key, tuple(other), tuple(shape), dtype, sketch)


@opaque()
def _multiply_backward(
    grad_output: Tensor,
    kept: list[Tensor],
    key: Tensor,
    other: list[int],
    shape: list[int],
    dtype: torch.dtype,
    sketch: str,
) -> Tensor:
    how = tuple(other), tuple(shape), dtype, from_text(sketch)
    return gradient(grad_output, kept, key, *how)


def gradient(
    grad_output: Tensor,
    kept: list[Tensor],
    key: Tensor,
    other: Sizes,
    shape: Sizes,
    dtype: torch.dtype,
    sketch: Sketch,
) -> Tensor:
    """grad_output * y_hat, summed to that shape and type, for the y of shape `other` that is kept.

    Some entries of the first axis are read at a time.
    """
    if isinstance(sketch, Identity):
        return (grad_output * kept[0]).sum_to_size(shape).to(dtype)
    whole = tuple(grad_output.shape)
    if not grad_output.numel():
        return grad_output.new_zeros(shape, dtype=dtype)
    if whole == other == shape:
        return cast(times_derivative(sketch, grad_output, kept, key), dtype, key, READ)
    own = (1,) * (len(whole) - len(shape)) + shape
    sums = _sums(grad_output, tuple(kept), key, other, own, sketch)
    if own[0] < whole[0]:
        total, _ = next(sums)
        for part, _ in sums:
            total += part
        return cast(total, dtype, key, READ).view(shape)
    each = math.prod(own[1:-1])  # rows of an entry
    parts = (
        cast(part, dtype, key, READ, range(entries.start * each, entries.stop * each))
        for part, entries in sums
    )
    return joined(parts, own[0]).view(shape)


def _sums(
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    key: Tensor,
    other: Sizes,
    own: Sizes,
    sketch: Sketch,
) -> Iterator[tuple[Tensor, range]]:
    """grad_output * y_hat of some entries of the first axis, summed over the axes that own lacks.

    Of float32 at least.
    """
    whole, wide = grad_output.shape, accumulation_dtype(grad_output.dtype)
    axes = (1,) * (len(whole) - len(other)) + other
    shape = (*other[:2], math.prod(other[2:])) if len(other) > 3 else other or (1,)
    each = len(rows_of(shape)) // axes[0]
    is_read_once = axes[0] < whole[0] or len(whole) == 1
    y_hat = sketch.decompress(kept, shape, wide, key).view(axes) if is_read_once else None
    step = whole[0] if len(whole) == 1 else piece_of(grad_output) // math.prod(whole[1:])
    for entries in pieces(range(whole[0]), step):
        factor = y_hat
        if factor is None:
            rows = range(entries.start * each, entries.stop * each)
            factor = sketch.decompress(kept, shape, wide, key, rows).view(len(entries), *axes[1:])
        product = grad_output[entries.start : entries.stop].to(wide) * factor
        first = len(entries) if own[0] == whole[0] else 1
        yield product.sum_to_size(first, *own[1:]), entries
