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
import torch.nn.functional as F
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.casts import cast
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype
from rad.functional.activation import Activation
from rad.functional.arguments import check_real, without_autocast
from rad.functional.scaling import normalised
from rad.functional.second_order import OF_ACTIVATION, refused
from rad.functional.strided import numbers
from rad.packing.pieces import pieces
from rad.sketches.base import Sketch, rows_of
from rad.sketches.blockwise import Rounding
from rad.sketches.identity import Identity
from rad.sketches.noise import Numbers

Function = Callable[[Tensor], Tensor]

PIECE = 1 << 17
"""Derivatives rounded and read at a time: no whole tensor of them stands in memory."""

STRIDED_PIECE = 1 << 16
"""The same where a contiguous copy is made of each."""

SHORT_PIECE = 1 << 14
"""The same of bfloat16 and float16 on a CPU, where draws and bits take thirty bytes for each."""

VECTOR = 64
"""Numbers after which a vector of any machine ends: a rest has its own last bits."""


class _SketchedDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, sketch: Sketch, key: Tensor) -> Tensor:
        ctx.sketch, ctx.shape = sketch, x.shape
        if not ctx.needs_input_grad[0]:
            return function(x)
        if torch.compiler.is_compiling():
            output, *kept = _elementwise(x, key, as_text(function), as_text(sketch))
        else:
            output, *kept = _value_and_kept(function, x, sketch, key)
        ctx.save_for_backward(key, *kept)
        return output

    @staticmethod
    @refused(OF_ACTIVATION)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, *kept = ctx.saved_tensors
        if torch.compiler.is_compiling():
            grad_input = _elementwise_backward(grad_output, kept, key, as_text(ctx.sketch))
        else:
            grad_input = times_derivative(ctx.sketch, grad_output.expand(ctx.shape), kept, key)
        return grad_input, None, None, None


@opaque()
def _elementwise(x: Tensor, key: Tensor, function: str, sketch: str) -> list[Tensor]:
    return _value_and_kept(from_text(function), x, from_text(sketch), key)


@opaque()
def _elementwise_backward(
    grad_output: Tensor, kept: list[Tensor], key: Tensor, sketch: str
) -> Tensor:
    return times_derivative(from_text(sketch), grad_output, kept, key)


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
    """E |grad_hat - grad|^2 over the keys, in closed form: float64, shape ().

    The sum of grad_output^2 times the variance of each kept derivative. Raises TypeError for
    sketches whose errors are not those of single numbers (`rad.sketches.noise.Numbers` without
    a rotation).
    """
    derivative = derivative_rows(_derivative(function, x.detach()))
    grad, scale = normalised(grad_output.to(accumulation_dtype(x.dtype)))
    energy = derivative_rows(grad.expand(x.shape)).square()
    total = energy.new_zeros((), dtype=torch.float64)
    for part in sketch.noise(derivative.shape[-1]):
        if not isinstance(part, Numbers) or part.rotation is not None:
            raise TypeError(f"no closed-form gradient variance for {type(sketch).__name__}")
        total += part.factor * (energy * part.source.element_variance(derivative)).sum()
    return total * scale**2


def _value_and_kept(function: Function, x: Tensor, sketch: Sketch, key: Tensor) -> list[Tensor]:
    """function(x), and the sketch of its derivative.

    Where a rounding can take it a piece at a time, the derivative does not stand whole; nor does
    a contiguous copy of x.
    """
    is_short = x.is_contiguous() and _piece(x) >= x.numel()
    if not isinstance(sketch, Rounding) or is_short or sketch.in_kernels(x, key):
        output, dense = function(x), _derivative(function, x)
        with without_autocast(x):
            return [output, *sketch.compress(derivative_rows(dense), key)]
    output, x = function(x), x.detach()
    shape = tuple(derivative_rows(x).shape)

    def derivative(part: slice) -> Tensor:
        wanted = numbers(x, part)
        rest = 0 if x.is_contiguous() else -len(wanted) % VECTOR
        values = F.pad(wanted, (0, rest)) if rest else wanted
        return _derivative(function, values)[: len(wanted)]

    return [output, *sketch.compress_parts(derivative, shape, key, _piece(x))]


def _piece(x: Tensor) -> int:
    """How many derivatives of the type of x are rounded or read at a time: all, where few."""
    if x.is_cpu and x.dtype != accumulation_dtype(x.dtype):
        return SHORT_PIECE
    if not x.is_contiguous() and x.is_cpu:
        return STRIDED_PIECE
    return PIECE if x.numel() > 2 * PIECE else max(1, x.numel())


def times_derivative(
    sketch: Sketch, grad_output: Tensor, kept: list[Tensor], key: Tensor
) -> Tensor:
    """grad_output * d_hat for the d_hat that `kept` is a sketch of: grad_output's shape and type.

    Read some rows at a time. The product is of float32 at least, and its cast to a shorter type is
    right on average: the nearest short number would be a bias.
    """
    rows_of_grad = derivative_rows(grad_output)
    shape = tuple(rows_of_grad.shape)
    d, cut = shape[-1], pieces(rows_of(shape), _piece(grad_output) // max(1, shape[-1]))
    if len(cut) == 1:
        grad = rows_of_grad.reshape(len(cut[0]), d)
        return _product(sketch, grad, tuple(kept), shape, key, cut[0]).view(grad_output.shape)
    grad_input = grad_output.new_empty(grad_output.numel())
    for rows in cut:
        here = slice(rows.start * d, rows.stop * d)
        grad = numbers(grad_output, here).view(len(rows), d)
        grad_input[here] = _product(sketch, grad, tuple(kept), shape, key, rows).view(-1)
    return grad_input.view(grad_output.shape)


def _product(
    sketch: Sketch,
    grad: Tensor,
    kept: tuple[Tensor, ...],
    shape: tuple[int, ...],
    key: Tensor,
    rows: range,
) -> Tensor:
    """Those rows of `times_derivative`."""
    dtype, wide = grad.dtype, accumulation_dtype(grad.dtype)
    derivative = sketch.decompress(kept, shape, wide, key, rows)
    if isinstance(sketch, Identity):
        return (grad.to(wide) * derivative).to(dtype)
    return cast(derivative.mul_(grad), dtype, key, READ, rows)


def _derivative(function: Function, x: Tensor) -> Tensor:
    if isinstance(function, Activation):
        return function.derivative(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(function(x).sum(), x)
    return derivative


def derivative_rows(x: Tensor) -> Tensor:
    """x as the rows that its sketch acts on."""
    return x.flatten(2) if x.dim() > 3 else x if x.dim() else x.view(1)
