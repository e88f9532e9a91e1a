"""Pooling that remembers no activation.

Average pooling is linear: its backward pass needs shapes only. Max pooling keeps
which element of its window each output is, in 1, 2, 4, 8, 16 or 32 bits (2 for a
2 x 2 window). Torch keeps the whole input of both, and 64-bit indices of the latter.
Everything is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.backends.operators import opaque
from rad.dtypes import LOOP_DTYPES
from rad.functional.arguments import Sizes, each
from rad.functional.second_order import will_be_differentiated
from rad.packing.bits import index_width, pack_integers, unpack_integers

PIECE = 1 << 14
"""Offsets that are calculated at a time: a handful of integers for each stay in a core's cache."""

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
        if _halves_in_loops(x, options):
            from rad.functional.pooling_loops import average

            means = x.new_empty(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)
            average(_images(x), _images(means))
            return means
        output: Tensor = _AVERAGE[axes][0](x, *options)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        if _halves_in_loops(grad_output, ctx.options) and not will_be_differentiated():
            from rad.functional.pooling_loops import spread

            grad = grad_output.new_empty(ctx.shape)
            spread(_images(grad_output), _images(grad))
            return grad, None, None
        # Only the shape of the input is read.
        shape_of_input = grad_output.new_empty(()).expand(ctx.shape)
        grad_input = _AVERAGE[ctx.axes][1](grad_output, shape_of_input, *ctx.options)
        return grad_input, None, None


def _halves_in_loops(x: Tensor, options: tuple[Any, ...]) -> bool:
    """Whether loops take x: windows of 2 x 2, side by side, in contiguous images."""
    windows = options[:4] == ((2, 2), (2, 2), (0, 0), False) and options[5] in (None, 4)
    return windows and x.dtype in LOOP_DTYPES and x.is_contiguous() and backends.in_loops(x)


def _images(x: Tensor) -> np.ndarray[Any, Any]:
    """x (..., H, W) as an array (count, H, W)."""
    return x.detach().numpy().reshape(-1, *x.shape[-2:])


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
        ctx.input_shape = x.shape
        ctx.save_for_backward(_max_pool_offsets(places, list(x.shape[-axes:]), window.flat()))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,) = ctx.saved_tensors
        arguments = (grad_output, packed, list(ctx.input_shape), ctx.axes, ctx.window.flat())
        return _max_pool_backward(*arguments), None, None, None


class _Window(tuple[tuple[int, ...], ...]):
    """(kernel, stride, padding, dilation), one integer an axis each."""

    def bits(self) -> int:
        """Bits for one offset into the window."""
        return offset_bits(self[0])

    def flat(self) -> list[int]:
        """All of its integers in one list."""
        return [each for part in self for each in part]

    @classmethod
    def of(cls, flat: list[int]) -> _Window:
        """The window of such a list."""
        axes = len(flat) // 4
        return cls(tuple(flat[i : i + axes]) for i in range(0, len(flat), axes))


def offset_bits(kernel: tuple[int, ...]) -> int:
    """Bits kept for an offset into a window of that shape: 1, 2, 4, 8, 16 or 32."""
    return index_width(math.prod(kernel))


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


@opaque()
def _max_pool_offsets(places: Tensor, space: list[int], flat_window: list[int]) -> Tensor:
    """Which element of its window each place (a flat index into `space`) is, packed."""
    window, size = _Window.of(flat_window), torch.Size(space)
    rows = places.reshape(-1, *places.shape[places.dim() - len(space) + 1 :])
    outputs = places.shape[-len(space)]
    packed = [
        pack_integers(
            _offsets(rows[piece.start : piece.stop], piece, outputs, size, window),
            bits,
        )
        for bits in [window.bits()]
        for piece in _pieces(rows)
    ]
    return packed[0] if len(packed) == 1 else torch.cat(packed)


@opaque()
def _max_pool_backward(
    grad_output: Tensor, packed: Tensor, shape: list[int], axes: int, flat_window: list[int]
) -> Tensor:
    """The gradient of an input of that shape: grad_output at the kept places, zero elsewhere."""
    window = _Window.of(flat_window)
    grad_input = grad_output.new_zeros(shape)
    flat, space, bits = grad_input.view(-1), torch.Size(shape[-axes:]), window.bits()
    rows = grad_output.reshape(-1, *grad_output.shape[grad_output.dim() - axes + 1 :])
    outputs = grad_output.shape[-axes]
    for piece in _pieces(rows):
        grad = rows[piece.start : piece.stop]
        each = rows.shape[1:].numel() * bits // packed.element_size()
        part = packed[piece.start * each // 8 : -(-piece.stop * each // 8)]
        places = _places(unpack_integers(part, bits, grad.shape), piece, outputs, space, window)
        flat.scatter_add_(0, places.flatten(), grad.flatten())
    return grad_input


def _pieces(rows: Tensor) -> Iterator[range]:
    """Rows of outputs, a multiple of eight at a time (whole bytes of offsets), some PIECE numbers.

    A row holds the outputs of one index along the first of the pooled axes.
    """
    each = rows.shape[1:].numel()
    step = max(1, PIECE // max(1, 8 * each)) * 8
    for start in range(0, max(1, len(rows)), step):
        yield range(start, min(start + step, len(rows)))


def _offsets(
    places: Tensor, piece: range, outputs: int, space: torch.Size, window: _Window
) -> Tensor:
    """Which element of its window each place of those rows is; `outputs` rows an image."""
    places = _narrow(places, space)
    offset = torch.zeros_like(places)
    for axis, coordinate in enumerate(_unravel(places, space)):
        kernel, stride, padding, dilation = (part[axis] for part in window)
        start = _indices(places, piece, outputs, axis) * stride - padding
        offset.mul_(kernel).add_((coordinate - start) // dilation)
    return offset


def _places(
    offsets: Tensor, piece: range, outputs: int, space: torch.Size, window: _Window
) -> Tensor:
    """The inverse of `_offsets`: flat indices into all images of shape `space`."""
    offsets = _narrow(offsets, space)
    place = torch.zeros_like(offsets)
    for axis, within in enumerate(_unravel(offsets, torch.Size(window[0]))):
        _, stride, padding, dilation = (part[axis] for part in window)
        start = _indices(offsets, piece, outputs, axis) * stride - padding
        place.mul_(space[axis]).add_(within * dilation).add_(start)
    image = torch.arange(piece.start, piece.stop, device=offsets.device) // outputs
    return _along(image * space.numel(), offsets, 0) + place


def _narrow(flat: Tensor, space: torch.Size) -> Tensor:
    """Flat indices into `space` as integers of 32 bits, where they fit: divided twice as fast."""
    return flat.to(torch.int32) if space.numel() < 1 << 31 else flat


def _unravel(flat: Tensor, shape: torch.Size) -> list[Tensor]:
    coordinates = []
    for size in reversed(shape[1:]):
        coordinates.append(flat % size)
        flat = flat // size
    return [flat, *coordinates[::-1]]


def _indices(like: Tensor, piece: range, outputs: int, axis: int) -> Tensor:
    """The outputs' indices along a pooled axis, broadcastable to those rows."""
    if axis == 0:
        return _along(torch.arange(piece.start, piece.stop, device=like.device) % outputs, like, 0)
    return _along(torch.arange(like.shape[axis], device=like.device), like, axis)


def _along(index: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector as what varies along one axis of `like`, broadcastable to it."""
    return index.view(-1, *(1,) * (like.dim() - 1 - axis))
