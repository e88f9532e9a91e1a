"""ReLU and 2 x 2 average pooling in one pass, without the ReLU's output.

Kept between forward and backward: four bits for each output, which of its inputs are
active. The ReLU's output, four times as large as what comes out, never stands in memory.
Everything is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad import backends
from rad.backends.operators import opaque
from rad.dtypes import LOOP_DTYPES, accumulation_dtype
from rad.functional.second_order import will_be_differentiated
from rad.packing.bits import pack_integers, unpack

BITS = 4
"""Of one output."""

_ZERO: dict[torch.dtype, np.floating[Any]] = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
}


class _ReLUAvgPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output, packed = _pooled_and_bits(x)
        ctx.shape = x.shape
        ctx.save_for_backward(packed)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        shape = list(ctx.shape)
        if will_be_differentiated():
            return _spread(packed, grad_output, shape)
        return _relu_avg_pool2d_backward(packed, grad_output, shape)


@opaque()
def _relu_avg_pool2d_backward(packed: Tensor, grad_output: Tensor, shape: list[int]) -> Tensor:
    if grad_output.dtype in LOOP_DTYPES and backends.in_loops(grad_output):
        return _backward_in_loops(packed, grad_output, shape)
    if backends.use_kernels(grad_output):
        from rad.kernels.relu import relu_avg_pool2d_backward

        grad_input = grad_output.new_zeros(shape)
        relu_avg_pool2d_backward(packed, grad_output, grad_input)
        return grad_input
    return _spread(packed, grad_output, shape)


def _spread(packed: Tensor, grad_output: Tensor, shape: list[int]) -> Tensor:
    """A quarter of each window's gradient to each of its active inputs, with torch's operators."""
    grad_input = grad_output.new_zeros(shape)
    active = unpack(packed, torch.Size((*grad_output.shape, BITS)))
    quarter = grad_output * 0.25
    for place, corner in enumerate(_corners(grad_input)):
        corner.copy_(quarter.where(active[..., place], 0))
    return grad_input


@opaque()
def _pooled_and_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.is_contiguous() and x.dtype in LOOP_DTYPES and backends.in_loops(x):
        return _pooled_in_loops(x)
    if backends.use_kernels(x) and x.is_contiguous():
        from rad.kernels import relu

        return relu.relu_avg_pool2d(x)
    shape = (*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)
    total = x.new_zeros(shape, dtype=accumulation_dtype(x.dtype))
    bits = x.new_zeros(shape, dtype=torch.uint8)
    for place, corner in enumerate(_corners(x)):
        active = corner.relu()
        total += active
        bits |= active.bool().to(torch.uint8) << place  # not "> 0": NaN is active, as in torch
    return total.mul_(0.25).to(x.dtype), pack_integers(bits, BITS)


def _pooled_in_loops(x: Tensor) -> tuple[Tensor, Tensor]:
    from rad.functional.relu_pool_loops import relu_avg_pool

    *lead, height, width = x.shape
    output = torch.empty(*lead, height // 2, width // 2, dtype=x.dtype)
    packed = torch.empty(-(-output.numel() // 2), dtype=torch.uint8)
    places = (x.data_ptr(), output.data_ptr(), packed.data_ptr())
    relu_avg_pool(*places, math.prod(lead), height, width, _ZERO[x.dtype])
    return output, packed


def _backward_in_loops(packed: Tensor, grad_output: Tensor, shape: list[int]) -> Tensor:
    from rad.functional.relu_pool_loops import relu_avg_pool_backward

    *lead, height, width = shape
    grad = grad_output.contiguous()
    grad_input = torch.empty(shape, dtype=grad.dtype)
    assert len(packed) == -(-grad.numel() // 2)
    places = (packed.data_ptr(), grad.data_ptr(), grad_input.data_ptr())
    relu_avg_pool_backward(*places, math.prod(lead), height, width, _ZERO[grad.dtype])
    return grad_input


def _corners(x: Tensor) -> Iterator[Tensor]:
    """Views of x (..., H, W) with one input of each window: (..., H // 2, W // 2), row by row."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    for row in range(2):
        for column in range(2):
            yield x[..., row:height:2, column:width:2]


def relu_avg_pool2d(x: Tensor) -> Tensor:
    """`avg_pool2d(relu(x), 2)` that keeps four bits an output.

    Shapes: (B, C, H, W) or (C, H, W) -> the same with H // 2 and W // 2. NaN passes as in torch.
    Raises ValueError for another number of axes, or less than 2 x 2.
    """
    if x.dim() not in (3, 4) or min(x.shape[-2:]) < 2:
        raise ValueError(f"give (B, C, H, W) or (C, H, W) of at least 2 x 2, got {tuple(x.shape)}")
    result: Tensor = _ReLUAvgPool2d.apply(x)
    return result
