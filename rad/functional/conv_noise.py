"""The variance of a convolution's weight gradient, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.geometry import Geometry
from rad.functional.noise_response import NoiseResponse
from rad.functional.scaling import normalised
from rad.sketches.base import Sketch, squared_norm


class ConvResponse(NoiseResponse):
    """How noise in the input of a convolution carries over to its weight gradient.

    Write dW = sum over positions i of A_i, A_i being what position i of the input contributes
    through all rows that share a draw: `rad.sketches.noise.Columns` says what drawn and mixed
    positions add. Rows with draws of their own add up. Uncorrelated errors: each number of the
    input adds its error's variance times the squared norm of all output gradients that it is
    multiplied with; for errors of rotated rows these gradients are rotated, too. Random factors of
    rows, which are channels, add Cov(c_n, c_m) <A_n, A_m> over pairs of rows, A_n being the
    contribution of row n. What is left of rows beside some directions meets, of the gradients, what
    is left of those.
    So it is for transposed convolutions, too: which output gradients a number meets differs.
    Shapes: x (B, C_in, *space), grad_output (B, C_out, *out), weight for its shape.
    """

    def __init__(self, x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry) -> None:
        x, x_scale = normalised(x)
        wide = accumulation_dtype(x.dtype)
        grad, grad_scale = normalised(grad_output.to(wide))
        super().__init__(x.flatten(2).flatten(0, 1), x_scale**2 * grad_scale**2)
        self._x, self._grad = x.to(wide), grad
        self._weight, self._geometry = weight, geometry

    def _noise_weights(self) -> Tensor:
        batch, channels = self._x.shape[:2]
        grad, geometry = self._grad, self._geometry
        if geometry.padding_mode == "constant" and not geometry.is_transposed:
            # Each tap reads a number once at most.
            single = replace(geometry, groups=1)
            energy = grad.square().unflatten(1, (geometry.groups, -1)).sum(2).flatten(0, 1)
            shape = energy.new_empty(()).expand(len(energy), 1, *self._x.shape[2:])
            ones = energy.new_ones(1, 1, *self._weight.shape[2:])
            summed, _, _ = single.backward(energy.unsqueeze(1), shape, ones, (True, False, False))
            assert summed is not None
            total = summed.view(batch, geometry.groups, -1)
        else:
            total = grad.new_zeros(batch, geometry.groups, self._x.shape[2:].numel())
            for _, each in self._taps():
                total += each.square().sum(2)
        return total.repeat_interleave(channels // geometry.groups, dim=1).flatten(0, 1)

    def _columns(self, mixed: bool, shared: bool) -> Tensor:
        total = self._grad.new_zeros(())
        for inputs, aligned in self._taps():
            if not mixed:
                total += _sampled(inputs, aligned) if shared else _sampled_apart(inputs, aligned)
            elif shared:
                total += _projected(inputs, aligned)
            else:
                for one, other in zip(inputs.split(1), aligned.split(1), strict=True):
                    total += _projected(one, other)
        return total

    def _rotated(self, variance: Tensor, rotation: Callable[[Tensor], Tensor]) -> Tensor:
        total, groups = self._grad.new_zeros(()), self._geometry.groups
        by_group = variance.view(len(self._x), groups, -1, variance.shape[1]).sum(2)
        for _, aligned in self._taps():
            total += (by_group * rotation(aligned).square().sum(2)).sum()
        return total

    def _rows(self, covariance: Tensor) -> Tensor:
        """Over pairs of rows of one channel: only these add to the same weights."""
        batch, channels = self._x.shape[:2]
        same_channel = covariance.view(batch, channels, batch, channels).diagonal(dim1=1, dim2=3)
        per_group = same_channel.to(self._x.dtype).unflatten(2, (self._geometry.groups, -1))
        total = self._grad.new_zeros(())
        for inputs, aligned in self._taps():
            parts = torch.einsum("bgci,bgoi->bgco", inputs, aligned)
            total += torch.einsum("bgco,egco,begc->", parts, parts, per_group)
        return total

    def _complement(self, directions: Tensor) -> Tensor:
        size = self.rows.shape[1] - directions.shape[1]
        total = self._grad.new_zeros(())
        if size == 1:  # a projection on all there is
            return total
        for inputs, aligned in self._taps():
            x, grad = (each - each @ directions @ directions.t() for each in (inputs, aligned))
            trace = torch.einsum("bgci,bgoi->gco", x, grad)
            total += _squares(x, grad) - 2 / size * squared_norm(trace)
        return total * (size / ((size - 1) * (size + 2)))

    def _taps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each tap x (B, G, C, d) and the output gradient aligned with it (B, G, O, d), by
        groups."""
        groups, space = self._geometry.groups, self._x.shape[2:]
        inputs = self._x.flatten(2).unflatten(1, (groups, -1))
        for tap in product(*map(range, self._weight.shape[2:])):
            aligned = _aligned(self._grad, space, tap, self._geometry).flatten(2)
            yield inputs, aligned.unflatten(1, (groups, -1))


def conv_weight_grad_variance(
    x: Tensor, grad_output: Tensor, weight: Tensor, geometry: Geometry, sketch: Sketch
) -> Tensor:
    """E |dW_hat - dW|^2 over the keys, in closed form: float64, shape ().

    Numbers of any size are brought into range first. Shapes and derivation: `ConvResponse`.
    Raises TypeError for a sketch without a closed form (`Sketch.noise`).
    """
    variance = ConvResponse(x, grad_output, weight, geometry).to_sketch(sketch)
    return torch.tensor(variance, dtype=torch.float64, device=x.device)


def _aligned(
    grad_output: Tensor, space: torch.Size, tap: tuple[int, ...], geometry: Geometry
) -> Tensor:
    """The output gradient (B, O, *out) laid where that tap reads the input: (B, O, *space)."""
    if geometry.is_transposed:
        return _aligned_transposed(grad_output, space, tap, geometry)
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
    aligned = read[tuple(inside)]
    return torch.autograd.grad(padded, x, aligned)[0] if geometry.pre_padding else aligned


def _aligned_transposed(
    grad_output: Tensor, space: torch.Size, tap: tuple[int, ...], geometry: Geometry
) -> Tensor:
    """The output gradient where a transposed convolution's tap writes what it read."""
    around = [width for width in geometry.padding[::-1] for _ in range(2)]
    places = [slice(None), slice(None)]
    for axis, (t, stride) in enumerate(zip(tap, geometry.stride, strict=True)):
        first = t * geometry.dilation[axis]
        places.append(slice(first, first + stride * (space[axis] - 1) + 1, stride))
    return F.pad(grad_output, around)[tuple(places)]


def _sampled(x: Tensor, aligned: Tensor) -> Tensor:
    """d sum_i |A_i|^2 - |sum_i A_i|^2 of rows (B, G, C, d) that share a draw."""
    contributions = torch.einsum("bgci,bgoi->igco", x, aligned)
    return x.shape[-1] * squared_norm(contributions) - squared_norm(contributions.sum(0))


def _sampled_apart(x: Tensor, aligned: Tensor) -> Tensor:
    """The sum of `_sampled` over rows (B, G, C, d) that each have a draw of their own."""
    energy = x.square().sum(2).flatten() @ aligned.square().sum(2).flatten()
    return x.shape[-1] * energy - squared_norm(x @ aligned.mT)


def _projected(x: Tensor, aligned: Tensor) -> Tensor:
    """|M|^2 + tr M^2 - 2 sum_i M_ii^2 of rows (B, G, C, d) that share a matrix."""
    diagonal = torch.einsum("bgci,bgoi->igco", x, aligned)
    return _squares(x, aligned) - 2 * squared_norm(diagonal)


def _squares(x: Tensor, aligned: Tensor) -> Tensor:
    """|M|^2 + tr M^2 of the products M of rows (B, G, C, d) with the gradients that they meet."""
    norm = torch.einsum("xgci,ygci,xgoj,ygoj->", x, x, aligned, aligned)
    crossed = torch.einsum("xgci,ygoi->gcoxy", x, aligned)
    return norm + (crossed * crossed.mT).sum()
