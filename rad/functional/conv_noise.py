"""The variance of a convolution's weight gradient, in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.conv import Geometry
from rad.functional.scaling import normalised
from rad.sketches.base import Sketch, squared_norm
from rad.sketches.identity import Identity
from rad.sketches.importance import ImportanceSampling
from rad.sketches.projection import DifferentProject, Project
from rad.sketches.rotation import RotatedRounding, rotate
from rad.sketches.rounding import Rounding
from rad.sketches.sampled_rounding import SampledRounding
from rad.sketches.sampling import DifferentSample, SameSample


def conv_weight_grad_variance(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry, sketch: Sketch
) -> Tensor:
    """E |dW_hat - dW|^2 over the keys, in closed form: shape ().

    Write dW = sum over positions i of A_i, A_i being what position i of the input
    contributes through all rows that share a draw. Sampling k of d positions with
    replacement gives (d sum_i |A_i|^2 - |sum_i A_i|^2) / k, times (d - k)/(d - 1)
    without; projection (|M|^2 + tr M^2 - 2 sum_i M_ii^2) / k summed over the weights,
    where M_ij multiplies the i-th input with what meets the j-th. Rows with draws of
    their own add up. Rounding errors are uncorrelated: each number of the input adds its
    error's variance times the squared norm of all that the number meets; if rotated, the
    rotated numbers meet what is rotated alike. Importance
    sampling, whose rows are channels, adds Cov(c_n, c_m) <A_n, A_m> over pairs of rows,
    A_n being the contribution of row n.
    Numbers of any size are normalised first; the result is float64.
    Shapes: x (B, C_in, *space), grad_output (B, C_out, *out), weight for its shape.
    Raises TypeError for a sketch without a closed form here.
    """
    x, x_scale = normalised(x)
    grad, grad_scale = normalised(grad_output.to(accumulation_dtype(x.dtype)))
    variance = _variance(x, grad, weight, geometry, sketch)
    return variance.double() * x_scale**2 * grad_scale**2


def _variance(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry, sketch: Sketch
) -> Tensor:
    """`conv_weight_grad_variance` of numbers that need not be normalised."""
    wide = accumulation_dtype(x.dtype)
    if isinstance(sketch, Identity):
        return x.new_zeros((), dtype=wide)
    if isinstance(sketch, Rounding):
        return _rounded(x, grad_output, weight, geometry, sketch)
    if isinstance(sketch, SampledRounding):
        rounding = _rounded(x, grad_output, weight, geometry, sketch)
        sample = _variance(x, grad_output, weight, geometry, sketch.sample)
        return rounding + sample
    if isinstance(sketch, RotatedRounding):
        return _rotated(x, grad_output, weight, geometry, sketch)
    if isinstance(sketch, ImportanceSampling):
        return _rows_drawn(x, grad_output, weight, geometry, sketch)
    if not isinstance(sketch, SameSample | DifferentSample | Project | DifferentProject):
        raise TypeError(f"no closed-form weight gradient variance for {type(sketch).__name__}")
    shared = isinstance(sketch, SameSample | Project)
    sampling = isinstance(sketch, SameSample | DifferentSample)
    total = x.new_zeros((), dtype=wide)
    for inputs, met in _taps(x.detach().to(wide), grad_output.detach().to(wide), weight, geometry):
        if sampling:
            total += _sampled(inputs, met) if shared else _sampled_apart(inputs, met)
        elif shared:
            total += _projected(inputs, met)
        else:
            for one, other in zip(inputs.split(1), met.split(1), strict=True):
                total += _projected(one, other)
    d, k = x.shape[2:].numel(), sketch.kept(x.shape[2:].numel())
    without = sampling and not sketch.replacement  # type: ignore[union-attr]
    return total / k * ((d - k) / max(d - 1, 1) if without else 1)


def _taps(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group and tap: x (B, C, d) and the output gradient (B, O, d) that x meets there."""
    groups = geometry.groups
    inputs = x.flatten(2).unflatten(1, (groups, -1))
    for tap in product(*map(range, weight.shape[2:])):
        met = _met(grad_output, x.shape[2:], tap, geometry).flatten(2)
        met = met.unflatten(1, (groups, -1))
        for group in range(groups):
            yield inputs[:, group], met[:, group]


def _met(
    grad_output: Tensor, space: torch.Size, tap: tuple[int, ...], geometry: Geometry
) -> Tensor:
    """The output gradient (B, O, *out) laid where that tap reads the input: (B, O, *space)."""
    with torch.enable_grad():
        x = grad_output.new_empty(*grad_output.shape[:2], *space).requires_grad_()
        padded = geometry.pad(x)
    sizes = [n + 2 * p for n, p in zip(padded.shape[2:], geometry.padding, strict=True)]
    read = grad_output.new_zeros(*grad_output.shape[:2], *sizes)
    everything = slice(None)
    places, inside = [everything, everything], [everything, everything]
    for axis, (t, stride) in enumerate(zip(tap, geometry.stride, strict=True)):
        first = t * geometry.dilation[axis]
        places.append(slice(first, first + stride * grad_output.shape[2 + axis], stride))
        inside.append(slice(geometry.padding[axis], sizes[axis] - geometry.padding[axis]))
    read[tuple(places)] = grad_output
    met = read[tuple(inside)]
    return torch.autograd.grad(padded, x, met)[0] if geometry.pre_padding else met


def _sampled(x: Tensor, met: Tensor) -> Tensor:
    """d sum_i |A_i|^2 - |sum_i A_i|^2 of rows (B, C, d) that share a draw."""
    contributions = torch.einsum("bci,boi->ico", x, met)
    return x.shape[-1] * squared_norm(contributions) - squared_norm(contributions.sum(0))


def _sampled_apart(x: Tensor, met: Tensor) -> Tensor:
    """The sum of `_sampled` over rows (B, C, d) that each have a draw of their own."""
    energy = x.square().sum(1).flatten() @ met.square().sum(1).flatten()
    return x.shape[-1] * energy - squared_norm(torch.bmm(x, met.mT))


def _projected(x: Tensor, met: Tensor) -> Tensor:
    """|M|^2 + tr M^2 - 2 sum_i M_ii^2 of rows (B, C, d) that share a matrix."""
    norm = torch.einsum("xci,yci,xoj,yoj->", x, x, met, met)
    crossed = torch.einsum("xci,yoi->coxy", x, met)
    diagonal = torch.einsum("bci,boi->ico", x, met)
    return norm + (crossed * crossed.mT).sum() - 2 * squared_norm(diagonal)


def conv_noise_weights(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """By what the variance of each number of the input counts in the weight gradient's.

    The squared norm of all that the number meets, for errors that are uncorrelated:
    (B C_in, d), the rows of a sketch. Shapes of the arguments: `conv_weight_grad_variance`.
    """
    batch, channels = x.shape[:2]
    grad = grad_output.detach().to(accumulation_dtype(x.dtype))
    if geometry.padding_mode == "constant":  # a kernel's place meets a number once, or not at all
        single = replace(geometry, groups=1)
        energy = grad.square().unflatten(1, (geometry.groups, -1)).sum(2).flatten(0, 1)
        shape = energy.new_empty(()).expand(len(energy), 1, *x.shape[2:])
        ones = energy.new_ones(1, 1, *weight.shape[2:])
        met, _, _ = single.backward(energy.unsqueeze(1), shape, ones, (True, False, False))
        assert met is not None
        total = met.view(batch, geometry.groups, -1)
    else:
        total = grad.new_zeros(batch, geometry.groups, x.shape[2:].numel())
        for number, (_, each) in enumerate(_taps(x.to(grad.dtype), grad, weight, geometry)):
            total[:, number % geometry.groups] += each.square().sum(1)
    return total.repeat_interleave(channels // geometry.groups, dim=1).flatten(0, 1)


def _rounded(
    x: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    sketch: Rounding | SampledRounding,
) -> Tensor:
    """Sum over the input's numbers of their variance times the energy of what they meet."""
    noise = sketch.element_variance(x.flatten(2).flatten(0, 1))
    return (noise * conv_noise_weights(x, grad_output, weight, geometry)).sum()


def _rotated(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry, sketch: RotatedRounding
) -> Tensor:
    """As `_rounded`, for errors that are uncorrelated after the rotation."""
    wide = accumulation_dtype(x.dtype)
    total = x.new_zeros((), dtype=wide)
    for inputs, met in _taps(x.detach().to(wide), grad_output.detach().to(wide), weight, geometry):
        noise = sketch.rotated_variance(inputs).sum(1)
        total += (noise * rotate(met).square().sum(1)).sum()
    return total


def _rows_drawn(
    x: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    geometry: Geometry,
    sketch: ImportanceSampling,
) -> Tensor:
    """Sum over pairs of rows of one channel of Cov(c_bc, c_ec) <A_bc, A_ec>; others do not meet."""
    wide = accumulation_dtype(x.dtype)
    batch, channels = x.shape[:2]
    covariance = sketch.weight_covariance(x.flatten(2).flatten(0, 1))
    same_channel = covariance.view(batch, channels, batch, channels).diagonal(dim1=1, dim2=3)
    per_group = same_channel.to(wide).split(channels // geometry.groups, dim=2)
    total = x.new_zeros((), dtype=wide)
    taps = _taps(x.detach().to(wide), grad_output.detach().to(wide), weight, geometry)
    for number, (inputs, met) in enumerate(taps):
        parts = torch.einsum("bci,boi->bco", inputs, met)
        total += torch.einsum("bco,eco,bec->", parts, parts, per_group[number % geometry.groups])
    return total
