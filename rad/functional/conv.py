"""Convolution whose backward pass remembers a sketch of the input.

Kept between forward and backward: the sketch of the input, its key, and the
weight. Not kept: the input. The input (B, C, *space) is sketched as B C rows of
positions (paper, section 4; the authors' code does the same): sampling keeps
positions, projection mixes them. Padding is linear in the input, so that every
padding mode stays unbiased. The gradients of input and bias are exact.
"""

from __future__ import annotations

from functools import singledispatch
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch.nn.grad
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.sizes import Sizes, each
from rad.sketches.base import Sketch, accumulation_dtype
from rad.sketches.identity import Identity
from rad.sketches.sampling import SameSample

PIECES = 5
"""Into how many parts of the batch a dense reading of the sketch is cut."""


class Geometry(NamedTuple):
    """What a convolution is, apart from its tensors: per-axis integers of length 1, 2 or 3."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pre_padding: tuple[int, ...] = ()
    """What is added before the convolution, as `torch.nn.functional.pad` takes it."""
    padding_mode: str = "constant"

    def is_pointwise(self, weight: Tensor) -> bool:
        """Whether each output position reads one input position, the same one."""
        trivial = all(k == 1 for k in weight.shape[2:]) and all(s == 1 for s in self.stride)
        return trivial and not any(self.padding) and not self.pre_padding

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pre_padding, self.padding_mode) if self.pre_padding else x

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        options = (self.stride, self.padding, self.dilation, self.groups)
        return convolve(self.pad(x), weight, bias, *options)

    def input_grad(self, grad_output: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        if not self.pre_padding:
            return self._input_grad(grad_output, weight, shape)
        with torch.enable_grad():
            x = grad_output.new_zeros(shape, requires_grad=True)
            padded = self.pad(x)
        inner = self._input_grad(grad_output, weight, padded.shape)
        return torch.autograd.grad(padded, x, inner)[0]

    def _input_grad(self, grad_output: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        x = grad_output.new_empty(()).expand(shape)
        return self._backward(grad_output, x, weight, (True, False, False))[0]

    def weight_grad(self, grad_output: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(grad_output, self.pad(x), weight, (False, True, False))[1]

    def _backward(
        self, grad_output: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.convolution_backward(
            grad_output,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0,) * len(self.stride),
            self.groups,
            mask,
        )


class _SketchedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        sketch: Sketch,
        key: Tensor,
    ) -> Tensor:
        output = geometry.forward(x, weight, bias)
        kept: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[1]:
            rows = x if isinstance(sketch, Identity) else x.flatten(2).flatten(0, 1)
            kept = sketch.compress(rows.to(output.dtype), key)
        ctx.geometry, ctx.sketch = geometry, sketch
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        ctx.bias_dtype = bias.dtype if bias is not None else None
        ctx.save_for_backward(key, weight, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, weight, *kept = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            cast = weight.to(grad_output.dtype)
            grad_input = geometry.input_grad(grad_output, cast, ctx.input_shape)
            grad_input = grad_input.to(ctx.input_dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = conv_weight_grad(
                ctx.sketch, grad_output, tuple(kept), weight, ctx.input_shape, geometry, key
            ).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum([0, *range(2, grad_output.dim())]).to(ctx.bias_dtype)
        return grad_input, grad_weight, grad_bias, None, None, None


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    sketch: Sketch,
    key: Tensor,
) -> Tensor:
    """`torch.nn.functional.conv1d`, `conv2d` or `conv3d` that keeps a sketch of x instead of x.

    Which one follows from the weight. `padding_mode` is that of `torch.nn.Conv2d`:
    zeros, reflect, replicate or circular.
    Shapes: x (B, C_in, *space) or (C_in, *space), weight (C_out, C_in / groups,
    *kernel), bias (C_out,). Differentiating twice raises RuntimeError. Raises
    ValueError if x has the wrong number of axes.
    """
    axes = weight.dim() - 2
    if x.dim() == axes + 1:
        x, batched = x.unsqueeze(0), False
    elif x.dim() == axes + 2:
        batched = True
    else:
        raise ValueError(f"{axes} spatial axes: cannot take an input of shape {tuple(x.shape)}")
    geometry = _geometry(weight, stride, padding, dilation, groups, padding_mode)
    output: Tensor = _SketchedConvolution.apply(x, weight, bias, geometry, sketch, key)
    return output if batched else output.squeeze(0)


def _geometry(
    weight: Tensor,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
) -> Geometry:
    axes = weight.dim() - 2
    strides, dilations = each(stride, axes), each(dilation, axes)
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        sides = [(p, p) for p in each(0 if padding == "valid" else padding, axes)]  # type: ignore[arg-type]
    around = tuple(chain.from_iterable(reversed(sides)))
    zeros = (0,) * axes
    if padding_mode != "zeros":
        return Geometry(strides, zeros, dilations, groups, around, padding_mode)
    if any(left != right for left, right in sides):
        return Geometry(strides, zeros, dilations, groups, around)
    return Geometry(strides, tuple(left for left, _ in sides), dilations, groups)


@singledispatch
def conv_weight_grad(
    sketch: Sketch,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor:
    """The gradient of the weight for the x_hat (B, C, *space) that `kept` is a sketch of.

    x_hat is read a part of the batch at a time, so that no dense copy of the whole
    input stands in memory. `weight` gives the shape only.
    """
    batch, channels = shape[:2]
    positions = shape[2:].numel()
    wide = accumulation_dtype(grad_output.dtype)
    like = weight.to(wide)
    total = torch.zeros((), dtype=wide, device=grad_output.device)
    step = -(-batch // PIECES)
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        rows = range(start * channels, stop * channels)
        x_hat = sketch.decompress(kept, (batch * channels, positions), wide, key, rows)
        x_hat = x_hat.view(stop - start, *shape[1:])
        total = total + geometry.weight_grad(grad_output[start:stop].to(wide), x_hat, like)
    return total


@conv_weight_grad.register
def _(
    sketch: Identity,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor:
    return geometry.weight_grad(grad_output, kept[0], weight.to(grad_output.dtype))


@conv_weight_grad.register
def _(
    sketch: SameSample,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor:
    if not geometry.is_pointwise(weight):
        dense = conv_weight_grad.dispatch(Sketch)
        return dense(sketch, grad_output, kept, weight, shape, geometry, key)
    positions = shape[2:].numel()
    indices = sketch.indices((len(kept[0]), positions), key)
    wide = accumulation_dtype(grad_output.dtype)
    at_kept = grad_output.flatten(2).index_select(2, indices).to(wide)
    columns = kept[0].to(wide).view(*shape[:2], -1)
    product = torch.einsum(
        "bgok,bgck->goc",
        at_kept.unflatten(1, (geometry.groups, -1)),
        columns.unflatten(1, (geometry.groups, -1)),
    )
    return product.mul(positions / len(indices)).view(weight.shape)
