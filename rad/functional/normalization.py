"""Layer, RMS, group and instance normalisation that keep their normalised input, dithered.

Of each row of d numbers that are normalised together, the gradient by the input is

    grad_x = r (g - mean(g) - x_hat mean(g x_hat)),   g = weight * grad_output,

r the reciprocal of the row's deviation, without mean(g) where no mean is taken (RMS). It is
quadratic in x_hat. Kept for backward are a `DitheredRounding` q of x_hat, its key and r, and not x
nor the mean, which torch keeps. Since E[q_i q_j] = x_hat_i x_hat_j, but for
E[q_i^2] = x_hat_i^2 + D_i^2 / 12 (`rad.functional.dithered`),

    r (g_i - mean(g) - q_i mean(g q) + g_i D_i^2 / (12 d))

is unbiased. The gradient of the weight, grad_output * q, is linear in q; that of the bias is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.dtypes import accumulation_dtype
from rad.functional.apply import apart
from rad.functional.arguments import check_real
from rad.functional.dithered import check_quadratic, keep_rows
from rad.functional.norm_gradients import gradients
from rad.functional.norm_rows import Norm, Shape
from rad.functional.second_order import OF_NORM, refused
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity
from rad.sketches.rounding import DitheredRounding


def layer_norm(
    x: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.layer_norm` that keeps x_hat in a few bits, and r = 1 / deviation.

    Forward is torch's. Gradients by x and the weight are unbiased, that by the bias exact
    (formulas: `rad.functional.normalization`). Kept: `sketch` of x_hat as rows of
    prod(normalized_shape), their r (float32 at least) and the key; `Identity` leaves torch's own.
    Shapes: x (*, *normalized_shape), weight and bias normalized_shape -> as x. Differentiating
    twice raises RuntimeError. Raises UsageError for sketches other than `DitheredRounding` and
    `Identity`, TypeError for complex numbers, and RuntimeError where torch does.
    """
    check_real(x)
    check_quadratic(sketch)
    if isinstance(sketch, Identity):
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    norm = Norm("layer", tuple(normalized_shape), eps)
    result: Tensor = _Normalise.apply(*apart(x, weight, bias), norm, sketch, key)
    return result


def rms_norm(
    x: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.rms_norm` that keeps x_hat in a few bits, and r = 1 / root mean square.

    As `layer_norm`, without a mean and a bias: grad_x is estimated by
    r (g_i - q_i mean(g q) + g_i D_i^2 / (12 d)). `eps` is by default that of x's type (of float32
    for shorter ones), as in torch, whose result in short types may differ in the last bit.
    """
    check_real(x)
    check_quadratic(sketch)
    if isinstance(sketch, Identity):
        return F.rms_norm(x, normalized_shape, weight, eps)
    eps = torch.finfo(accumulation_dtype(x.dtype)).eps if eps is None else eps
    norm = Norm("rms", tuple(normalized_shape), eps)
    result: Tensor = _Normalise.apply(x, weight, None, norm, sketch, key)
    return result


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.group_norm` that keeps x_hat in a few bits, and r = 1 / deviation.

    As `layer_norm`, over the channels and positions of each group: rows of d = C / num_groups * L.
    Shapes: x (N, C, *), weight and bias (C,) -> as x. The result is contiguous.
    """
    check_real(x)
    check_quadratic(sketch)
    if isinstance(sketch, Identity) or x.dim() < 2 or x.shape[1] % num_groups:
        return F.group_norm(x, num_groups, weight, bias, eps)
    norm = Norm("group", (x.shape[1],), eps, num_groups)
    result: Tensor = _Normalise.apply(*apart(x, weight, bias), norm, sketch, key)
    return result


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.instance_norm` that keeps x_hat in a few bits, and r = 1 / deviation.

    As `group_norm`, over the positions of each channel of each example: rows of d = L. Running
    statistics move as torch's; `use_input_stats=False` is torch's own.
    Shapes: x (N, C, *), all others (C,) -> as x. The result is contiguous. Raises ValueError for
    one position a channel, as torch.
    """
    check_real(x)
    check_quadratic(sketch)
    running = running_mean, running_var
    left = isinstance(sketch, Identity) or not use_input_stats
    if left or x.dim() < 3 or x.numel() <= x.shape[0] * x.shape[1]:
        return F.instance_norm(
            x, *running, weight, bias, use_input_stats, momentum, eps
        )  # and torch's errors
    norm = Norm("instance", (x.shape[1],), eps, x.shape[1])
    result: Tensor = _Normalise.apply(*apart(x, weight, bias), norm, sketch, key)
    if running_mean is not None or running_var is not None:
        _follow(x.detach(), running_mean, running_var, momentum)
    return result


def _follow(x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float) -> None:
    """Move the running statistics (C,) towards those of x (N, C, *), averaged over examples."""
    found = torch.var_mean(x.flatten(2).to(accumulation_dtype(x.dtype)), 2)
    for running, new in zip((var, mean), found, strict=True):
        if running is not None:
            running.lerp_(new.mean(0).to(running.dtype), momentum)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Norm,
        sketch: DitheredRounding,
        key: Tensor,
    ) -> Tensor:
        ctx.norm, ctx.sketch, ctx.dtype = norm, sketch, x.dtype
        if not any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(weight, key)
            return norm.forward(x, weight, bias)[0]
        if torch.compiler.is_compiling():
            output, r, *kept = _norm(x, weight, bias, key, as_text(norm), as_text(sketch))
        else:
            output, r, *kept = _value_and_kept(x, weight, bias, key, norm, sketch)
        # r serves the gradient by x alone
        ctx.save_for_backward(weight, key, *([r] if ctx.needs_input_grad[0] else []), *kept)
        return output

    @staticmethod
    @refused(OF_NORM)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, key, *kept = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        arguments = grad_output, weight, kept, key, wanted, ctx.dtype
        if torch.compiler.is_compiling():
            found = _norm_backward(*arguments, as_text(ctx.norm), as_text(ctx.sketch))
        else:
            found = gradients(*arguments, ctx.norm, ctx.sketch)
        grads = [grad if is_wanted else None for grad, is_wanted in zip(found, wanted, strict=True)]
        return *grads, None, None, None


@opaque()
def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, key: Tensor, norm: str, sketch: str
) -> list[Tensor]:
    return _value_and_kept(x, weight, bias, key, from_text(norm), from_text(sketch))


@opaque()
def _norm_backward(
    grad_output: Tensor,
    weight: Tensor | None,
    kept: list[Tensor],
    key: Tensor,
    wanted: list[bool],
    dtype: torch.dtype,
    norm: str,
    sketch: str,
) -> list[Tensor]:
    norms, sketches = from_text(norm), from_text(sketch)
    return gradients(grad_output, weight, kept, key, wanted, dtype, norms, sketches)


def _value_and_kept(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    key: Tensor,
    norm: Norm,
    sketch: DitheredRounding,
) -> list[Tensor]:
    """The result, r (rows, 1), and what `sketch` keeps of x_hat."""
    output, mean, r = norm.forward(x, weight, bias)
    rows = norm.rows(x.detach())

    def normalised(part: range) -> Tensor:
        here = slice(part.start, part.stop)
        numbers = rows[here].to(r.dtype)
        return numbers * r[here] if mean is None else (numbers - mean[here]).mul_(r[here])

    return [output, r, *keep_rows(sketch, normalised, (len(rows), rows.shape[1]), r, key)]
