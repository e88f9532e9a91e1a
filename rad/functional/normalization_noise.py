"""How far a normalisation's gradient, read from a dithered copy, lies from the exact one.

With e_i = q_i - x_i independent, uniform and of variance v_i = D_i^2 / 12 (x being x_hat), the
error of d / r times the i-th gradient is

    -(x_i sum_j g_j e_j + e_i sum_j g_j x_j + e_i sum_{j != i} g_j e_j + g_i (e_i^2 - v_i)).

Odd moments vanish, and the variance of e_i^2 is 4 v_i^2 / 5. With A = sum g_j^2 v_j,
S = sum g_j x_j and V = sum v_j, the errors' mean squares add up to

    A |x|^2 + 2 S sum x_i g_i v_i + S^2 V + V A - sum g_i^2 v_i^2 / 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rad.functional.batch_normalization import rows_shape
from rad.functional.dithered import number_variances
from rad.functional.norm_rows import Norm
from rad.sketches.base import Sketch


def norm_grad_variance(
    x: Tensor, grad_output: Tensor, norm: Norm, weight: Tensor | None, sketch: Sketch
) -> Tensor:
    """E |grad_x_hat - grad_x|^2 of a norm of rows, in closed form: float64, ().

    Shapes: as of `rad.functional.layer_norm`. Zero for `Identity`; raises UsageError for other
    sketches than `DitheredRounding`.
    """
    _, mean, r = norm.forward(x.detach(), None, None)
    rows = norm.rows(x.detach()).to(r.dtype)
    x_hat = (rows if mean is None else rows - mean) * r
    g = norm.view(grad_output).double()
    if weight is not None:
        g = g * weight.detach().double().view(*g.shape[1:3], 1)
    return _variance(x_hat, g.reshape(rows.shape), r, number_variances(sketch, x_hat))


def batch_norm_grad_variance(
    x: Tensor, grad_output: Tensor, weight: Tensor | None, sketch: Sketch, eps: float = 1e-5
) -> Tensor:
    """E |grad_x_hat - grad_x|^2 of a batch norm in training, in closed form: float64, ().

    Shapes: as of `rad.functional.batch_norm`. Zero for `Identity`; raises UsageError for other
    sketches than `DitheredRounding`.
    """

    def of_channels(tensor: Tensor) -> Tensor:
        return tensor.detach().transpose(0, 1).flatten(1)

    channels = of_channels(x)
    variance, mean = torch.var_mean(channels, 1, correction=0, keepdim=True)
    r = (variance + eps).rsqrt()
    of_examples = ((channels - mean) * r).view(x.transpose(0, 1).shape).transpose(0, 1)
    rounded = number_variances(sketch, of_examples.reshape(rows_shape(x.shape))).view(x.shape)
    g = of_channels(grad_output).double()
    if weight is not None:
        g = g * weight.detach().double()[:, None]
    return _variance(of_channels(of_examples), g, r, of_channels(rounded))


def _variance(x: Tensor, g: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """The sum over rows (n, d) of (r / d)^2 times the errors' mean squares: float64, ()."""
    x, g, r, v = (each.double() for each in (x, g, r, v))
    a, s, total = (g.square() * v).sum(1), (g * x).sum(1), v.sum(1)
    squares = a * x.square().sum(1) + 2 * s * (x * g * v).sum(1) + s.square() * total + total * a
    squares = squares - (g * v).square().sum(1) / 5
    return ((r[:, 0] / x.shape[1]).square() * squares).sum()
