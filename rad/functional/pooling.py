"""Pooling that remembers no activation.

Average pooling is linear: its backward pass needs shapes only. Max pooling keeps
which element of its window each output is, in 1, 2, 4, 8, 16 or 32 bits (2 for a
2 x 2 window). Torch keeps the whole input of both, and 64-bit indices of the latter.
Everything is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad.functional.arguments import Sizes, each
from rad.sketches.bits import pack_integers, packed_width, unpack_integers

_AVERAGE = {
    1: (torch.ops.aten.avg_pool2d, torch.ops.aten.avg_pool2d_backward),
    2: (torch.ops.aten.avg_pool2d, torch.ops.aten.avg_pool2d_backward),
    3: (torch.ops.aten.avg_pool3d, torch.ops.aten.avg_pool3d_backward),
}
_MAXIMUM: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: int, options: tuple[Any, ...]) -> Tensor:
        ctx.axes, ctx.options, ctx.shape = axes, options, x.shape
        output: Tensor = _AVERAGE[axes][0](x, *options)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        # Only the shape of the input is read.
        shape_of_input = grad_output.new_empty(()).expand(ctx.shape)
        grad_input = _AVERAGE[ctx.axes][1](grad_output, shape_of_input, *ctx.options)
        return grad_input, None, None


def avg_pool(
    x: Tensor,
    axes: int,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`torch.nn.functional.avg_pool1d`, `2d` or `3d` (by `axes`) that keeps the shape only.

    Shapes: (B, C, *space) or (C, *space) -> the same with pooled space.
    """
    kernel = each(kernel_size, axes)
    strides = kernel if stride is None else each(stride, axes)
    options = [kernel, strides, each(padding, axes)]
    if axes == 1:
        x = x.unsqueeze(-2)
        options = [(1, *option) for option in options[:2]] + [(0, *options[2])]
    flags = (ceil_mode, count_include_pad, divisor_override)
    output: Tensor = _AveragePool.apply(x, axes, (*options, *flags))
    return output.squeeze(-2) if axes == 1 else output


class _AdaptiveAveragePool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output_size: tuple[int, int]) -> Tensor:
        ctx.shape = x.shape
        return F.adaptive_avg_pool2d(x, output_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        # Only the shape of the input is read.
        shape_of_input = grad_output.new_empty(()).expand(ctx.shape)
        grad_input = torch.ops.aten._adaptive_avg_pool2d_backward(grad_output, shape_of_input)
        return grad_input, None


def adaptive_avg_pool2d(x: Tensor, output_size: int | tuple[int | None, ...]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` that keeps the shape only.

    Shapes: (B, C, H, W) or (C, H, W) -> the same with `output_size`.
    """
    wanted = (output_size,) * 2 if isinstance(output_size, int) else output_size
    sizes = [h if w is None else w for h, w in zip(x.shape[-2:], wanted, strict=True)]
    result: Tensor = _AdaptiveAveragePool2d.apply(x, tuple(sizes))
    return result


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: int, window: _Window, ceil_mode: bool) -> Tensor:
        output, places = _MAXIMUM[axes](x, *window, ceil_mode=ceil_mode, return_indices=True)
        ctx.axes, ctx.window = axes, window
        ctx.input_shape, ctx.output_shape = x.shape, output.shape
        offsets = _offsets(places, x.shape[-axes:], window)
        ctx.save_for_backward(_packed(offsets, window.bits()))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,) = ctx.saved_tensors
        window: _Window = ctx.window
        space = ctx.input_shape[-ctx.axes :]
        offsets = _unpacked(packed, window.bits(), ctx.output_shape)
        places = _places(offsets, space, window)
        grad_input = grad_output.new_zeros(*ctx.input_shape[: -ctx.axes], space.numel())
        grad_input.scatter_add_(-1, places.flatten(-ctx.axes), grad_output.flatten(-ctx.axes))
        return grad_input.view(ctx.input_shape), None, None, None


class _Window(tuple[tuple[int, ...], ...]):
    """(kernel, stride, padding, dilation), one integer an axis each."""

    def bits(self) -> int:
        """Bits for one offset into the window."""
        return offset_bits(self[0])


def offset_bits(kernel: tuple[int, ...]) -> int:
    """Bits kept for an offset into a window of that shape: 1, 2, 4, 8, 16 or 32."""
    size = math.prod(kernel)
    return packed_width(size) if size <= 1 << 16 else 32


def _packed(offsets: Tensor, bits: int) -> Tensor:
    return offsets.to(torch.int32) if bits == 32 else pack_integers(offsets, bits)


def _unpacked(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """The inverse of `_packed`: int64, of that shape."""
    return packed.to(torch.int64) if bits == 32 else unpack_integers(packed, bits, shape)


def max_pool(
    x: Tensor,
    axes: int,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`torch.nn.functional.max_pool1d`, `2d` or `3d` (by `axes`) that keeps window offsets.

    Shapes: (B, C, *space) or (C, *space) -> the same with pooled space.
    """
    kernel = each(kernel_size, axes)
    strides = kernel if stride is None else each(stride, axes)
    window = _Window((kernel, strides, each(padding, axes), each(dilation, axes)))
    result: Tensor = _MaxPool.apply(x, axes, window, ceil_mode)
    return result


def _offsets(places: Tensor, space: torch.Size, window: _Window) -> Tensor:
    """Which element of its window each place (a flat index into `space`) is."""
    offset = torch.zeros_like(places)
    for axis, coordinate in enumerate(_unravel(places, space)):
        kernel, stride, padding, dilation = (part[axis] for part in window)
        start = _starts(places, axis, len(space), stride, padding)
        offset.mul_(kernel).add_((coordinate - start) // dilation)
    return offset


def _places(offsets: Tensor, space: torch.Size, window: _Window) -> Tensor:
    """The inverse of `_offsets`."""
    place = torch.zeros_like(offsets)
    for axis, within in enumerate(_unravel(offsets, torch.Size(window[0]))):
        _, stride, padding, dilation = (part[axis] for part in window)
        start = _starts(offsets, axis, len(space), stride, padding)
        place.mul_(space[axis]).add_(within * dilation + start)
    return place


def _unravel(flat: Tensor, shape: torch.Size) -> list[Tensor]:
    coordinates = []
    for size in reversed(shape):
        coordinates.append(flat % size)
        flat = flat // size
    return coordinates[::-1]


def _starts(like: Tensor, axis: int, axes: int, stride: int, padding: int) -> Tensor:
    """Where the windows start along an axis, broadcastable to the output."""
    size = like.shape[axis - axes]
    start = torch.arange(size, device=like.device) * stride - padding
    return start.view(-1, *(1,) * (axes - axis - 1))
