"""ReLU that remembers one bit per unit.

Kept between forward and backward: the packed mask of active units. Not kept: the
output (torch keeps all of it). Everything is exact.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rad import kernels
from rad.functional.in_place import check_overwritable
from rad.sketches.bits import pack, unpack

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class _PackedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        output, packed = _relu_and_bits(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.shape = x.shape
        ctx.save_for_backward(packed)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        if kernels.use_kernels(grad_output):
            from rad.kernels.relu import relu_backward

            return relu_backward(packed, grad_output), None
        # By far the fastest way on a CPU, and no third buffer: bytes, not bool, to numbers;
        # torch's own kernel; in place.
        told = unpack(packed, ctx.shape).view(torch.uint8).to(grad_output.dtype)
        _threshold_backward(grad_output, told, 0, grad_input=told)
        return told, None


def _relu_and_bits(x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    if kernels.use_kernels(x) and x.is_contiguous():
        from rad.kernels import relu

        return relu.relu(x, inplace)
    output = x.relu_() if inplace else x.relu()
    return output, pack(output.bool())  # not "> 0": NaN is active, as in torch


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
