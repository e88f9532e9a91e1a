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
from rad.packing.bits import pack, unpack

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class _PackedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        output, packed = _relu_and_bits(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(packed)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        if will_be_differentiated():
            active = unpack(packed, grad_output.shape)
            return grad_output.where(active, 0), None
        return _relu_backward(packed, grad_output), None


@opaque()
def _relu_backward(packed: Tensor, grad_output: Tensor) -> Tensor:
    if backends.use_kernels(grad_output):
        from rad.kernels.relu import relu_backward

        return relu_backward(packed, grad_output)
    # By far the fastest way on a CPU, and no third buffer: torch's own kernel; in place.
    active = unpack(packed, grad_output.shape, grad_output.dtype)
    _threshold_backward(grad_output, active, 0, grad_input=active)
    return active


@opaque()
def _active_bits(output: Tensor) -> Tensor:
    return pack(output)  # not "> 0": NaN is active, as in torch


def _relu_and_bits(x: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    if backends.use_kernels(x) and x.is_contiguous():
        from rad.kernels import relu

        return relu.relu(x, inplace)
    output = x.relu_() if inplace else x.relu()
    return output, _active_bits(output)


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
