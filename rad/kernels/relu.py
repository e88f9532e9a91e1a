# mypy: disallow-untyped-defs=False
"""ReLU and its bits in one pass over memory, in the format of `rad.sketches.bits.pack`.

Forward reads x and writes max(x, 0) and the bits; backward reads the gradient and the bits and
writes the gradient. The operators they stand for are those of `rad.functional.relu`. A tile is
(octets, 8): bit j of an octet is its j-th number.

Pooling that follows stays an operator of its own: networks are converted layer by layer, whose
hooks see what they see in torch, and a pooling layer keeps no bytes that fusing it could save.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.sketches.bits import packed_bytes

OCTETS = 256


@triton.jit
def _forward(x, output, bits, count, octets: tl.constexpr):
    octet = tl.program_id(0).to(tl.int64) * octets + tl.arange(0, octets)
    j = tl.arange(0, 8)[None, :]
    place = octet[:, None] * 8 + j
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0)
    active = (value <= 0) == 0  # NaN counts as active
    tl.store(output + place, tl.where(active, value, 0.0), mask=inside)
    packed = tl.sum(active.to(tl.int32) << j, 1)
    tl.store(bits + octet, packed.to(tl.uint8), mask=octet * 8 < count)


@triton.jit
def _backward(bits, grad_output, grad_input, count, octets: tl.constexpr):
    octet = tl.program_id(0).to(tl.int64) * octets + tl.arange(0, octets)
    j = tl.arange(0, 8)[None, :]
    place = octet[:, None] * 8 + j
    inside = place < count
    byte = tl.load(bits + octet, mask=octet * 8 < count, other=0).to(tl.int32)
    active = ((byte[:, None] >> j) & 1) != 0
    grad = tl.load(grad_output + place, mask=inside, other=0)
    tl.store(grad_input + place, tl.where(active, grad, 0.0), mask=inside)


def relu(x: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """max(x, 0), in x itself if `inplace`, and the packed bits of what is active.

    x is contiguous, of any shape and floating-point type. Any device that Triton runs on.
    """
    output = x if inplace else torch.empty_like(x)
    bits = torch.empty(packed_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    if len(bits):
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(len(bits), OCTETS),)](x, output, bits, x.numel(), octets=OCTETS)
    return output, bits


def relu_backward(bits: Tensor, grad_output: Tensor) -> Tensor:
    """The gradient of the input: `grad_output`, of any strides, where its bit is set, else 0."""
    grad_output = grad_output.contiguous()
    grad_input = torch.empty_like(grad_output)
    if len(bits):
        with torch.cuda.device_of(bits):
            _backward[(triton.cdiv(len(bits), OCTETS),)](
                bits, grad_output, grad_input, grad_output.numel(), octets=OCTETS
            )
    return grad_input
