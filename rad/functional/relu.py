"""ReLU that remembers one bit per unit.

Kept between forward and backward: the packed mask of active units. Not kept: the
output (torch keeps all of it). Everything is exact.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.backends.operators import opaque
from rad.functional.in_place import check_overwritable
from rad.functional.second_order import will_be_differentiated
from rad.packing.bits import FLOATS, bits_of, pack, packed_bytes, unpack

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class _PackedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        ctx.order = _memory_order(x)
        output, packed = _relu_and_bits(_laid_out(x, ctx.order), inplace)
        ctx.save_for_backward(packed)
        if inplace:
            ctx.mark_dirty(x)
            return x
        return _laid_back(output, ctx.order)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        grad = _laid_out(grad_output, ctx.order)
        if will_be_differentiated():
            grad_input = grad.where(unpack(packed, grad.shape), 0)
        else:
            grad_input = relu_backward(packed, grad)
        return _laid_back(grad_input, ctx.order), None


def _memory_order(x: Tensor) -> list[int] | None:
    """The axes of x as they lie in memory (channels last); None for those in order, or compiled."""
    if x.is_contiguous() or torch.compiler.is_compiling():
        return None
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda axis: -strides[axis])


def _laid_out(x: Tensor, order: list[int] | None) -> Tensor:
    return x if order is None else x.permute(order)


def _laid_back(x: Tensor, order: list[int] | None) -> Tensor:
    return x if order is None else x.permute(sorted(range(len(order)), key=order.__getitem__))


def relu_in_place(x: Tensor) -> Tensor:
    """ReLU of x (contiguous, not compiled) in place, and its packed mask: uint8, (bytes,)."""
    return _relu_and_bits(x, inplace=True)[1]


def relu_backward(packed: Tensor, grad_output: Tensor, *, inplace: bool = False) -> Tensor:
    """The gradient of a ReLU's input: that of its output where a bit is set, else 0.

    May overwrite `grad_output` if `inplace`.
    """
    if inplace and _loops_take(grad_output):
        return _backward_in_loops(packed, grad_output, inplace)
    return _relu_backward(packed, grad_output)


@opaque()
def _relu_backward(packed: Tensor, grad_output: Tensor) -> Tensor:
    if _loops_take(grad_output):
        return _backward_in_loops(packed, grad_output, inplace=False)
    if backends.use_kernels(grad_output):
        from rad.kernels.relu import relu_backward

        return relu_backward(packed, grad_output)
    # By far the fastest way in torch's operators, and no third buffer: torch's own; in place.
    active = unpack(packed, grad_output.shape, grad_output.dtype)
    _threshold_backward(grad_output, active, 0, grad_input=active)
    return active


@opaque()
def _active_bits(output: Tensor) -> Tensor:
    return pack(output)  # not "> 0": NaN is active, as in torch


def _relu_and_bits(x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    if x.is_contiguous():
        if _loops_take(x):
            return _relu_in_loops(x, inplace)
        if backends.use_kernels(x):
            from rad.kernels import relu

            return relu.relu(x, inplace)
    output = x.relu_() if inplace else x.relu()
    return output, _active_bits(output)


def _loops_take(x: Tensor) -> bool:
    return x.dtype in FLOATS and backends.in_loops(x)


def _relu_in_loops(x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    from rad.functional.relu_loops import relu

    output, count = x if inplace else torch.empty_like(x), x.numel()
    packed = torch.empty(packed_bytes(count), dtype=torch.uint8)
    lowest, infinity = bits_of(-0.0, x.dtype), bits_of(-torch.inf, x.dtype)
    relu(x.data_ptr(), output.data_ptr(), packed.data_ptr(), count, lowest, infinity)
    return output, packed


def _backward_in_loops(packed: Tensor, grad_output: Tensor, inplace: bool) -> Tensor:
    from rad.packing.bit_loops import masked

    grad = grad_output.contiguous()
    ours = inplace or grad is not grad_output
    grad_input = grad if ours else torch.empty_like(grad)
    like, count = bits_of(0.0, grad.dtype), grad.numel()
    assert len(packed) == packed_bytes(count)
    masked(packed.data_ptr(), grad.data_ptr(), grad_input.data_ptr(), count, like)
    return grad_input


def relu(
    x: Tensor, mask: Literal["packed", "output"] = "packed", *, inplace: bool = False
) -> Tensor:
    """`torch.nn.functional.relu` with a choice of what is kept for backward.

    `mask="packed"` keeps one bit per unit, eight to a byte; `mask="output"` keeps
    the output, as torch does: free where the next layer keeps that tensor anyway.
    Any shape; NaN passes forward and backward as in torch. Raises ValueError for
    another `mask`.
    """
    if mask == "output":
        return F.relu(x, inplace=inplace)
    if mask != "packed":
        raise ValueError(f"mask must be 'packed' or 'output', got {mask!r}")
    if inplace:
        check_overwritable(x)
    result: Tensor = _PackedReLU.apply(x, inplace)
    return result
