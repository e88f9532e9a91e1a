# mypy: disallow-untyped-defs=False
"""ReLU and its bits in one pass over memory, in the format of `rad.packing.bits.pack`.

Forward reads x and writes max(x, 0) and the bits; backward reads the gradient and the bits and
writes the gradient. The operators they stand for are those of `rad.functional.relu`. A tile is
(octets, 8): bit j of an octet is its j-th number.

With the 2 x 2 average pooling that follows it, ReLU is the operator of `rad.functional.relu_pool`:
four bits an output, in the format of `rad.packing.bits.pack_integers`, two outputs a byte. A tile
is (bytes, 2 outputs, 4 inputs); the first input is the window's upper left one, row by row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws.kernels import wide_type
from rad.packing.bits import packed_bytes

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


@triton.jit
def _windows(count, height, width, tile: tl.constexpr):
    """A program's bytes (tile,), outputs (tile, 2, 1), which of them there are, their inputs
    (tile, 2, 4), and the inputs' numbers in the window."""
    byte = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    output = (byte[:, None] * 2 + tl.arange(0, 2)[None, :])[:, :, None]
    rows, columns = height // 2, width // 2
    plane, within = output // (rows * columns), output % (rows * columns)
    corner = tl.arange(0, 4)[None, None, :]
    row = within // columns * 2 + corner // 2
    column = within % columns * 2 + corner % 2
    return byte, output, output < count, (plane * height + row) * width + column, corner


@triton.jit
def _pool(x, output, bits, count, height, width, wide: tl.constexpr, tile: tl.constexpr):
    byte, place, inside, inputs, corner = _windows(count, height, width, tile)
    value = tl.load(x + inputs, mask=inside, other=0).to(wide)
    active = (value <= 0) == 0  # NaN counts as active
    total = tl.sum(tl.where(active, value, 0.0), 2, keep_dims=True) * 0.25
    tl.store(output + place, total.to(output.dtype.element_ty), mask=inside)
    shift = corner + tl.arange(0, 2)[None, :, None] * 4
    packed = tl.sum(tl.sum((active & inside).to(tl.int32) << shift, 2), 1)
    tl.store(bits + byte, packed.to(tl.uint8), mask=byte * 2 < count)


@triton.jit
def _pool_backward(
    bits, grad_output, grad_input, count, height, width, wide: tl.constexpr, tile: tl.constexpr
):
    byte, place, inside, inputs, corner = _windows(count, height, width, tile)
    packed = tl.load(bits + byte, mask=byte * 2 < count, other=0).to(tl.int32)[:, None, None]
    active = ((packed >> (corner + tl.arange(0, 2)[None, :, None] * 4)) & 1) != 0
    grad = tl.load(grad_output + place, mask=inside, other=0).to(wide) * 0.25
    given = tl.where(active, grad, 0.0).to(grad_input.dtype.element_ty)
    tl.store(grad_input + inputs, given, mask=inside)


def relu_avg_pool2d(x: Tensor) -> tuple[Tensor, Tensor]:
    """`rad.functional.relu_avg_pool2d` of a contiguous x, and the packed bits.

    The four numbers of a window may be added in another order than torch's. Any device that
    Triton runs on, here and below.
    """
    height, width = x.shape[-2:]
    output = x.new_empty(*x.shape[:-2], height // 2, width // 2)
    bits = torch.empty(triton.cdiv(output.numel(), 2), dtype=torch.uint8, device=x.device)
    if len(bits):
        with torch.cuda.device_of(x):
            _pool[(triton.cdiv(len(bits), OCTETS),)](
                x, output, bits, output.numel(), height, width, wide=wide_type(x.dtype), tile=OCTETS
            )
    return output, bits


def relu_avg_pool2d_backward(bits: Tensor, grad_output: Tensor, grad_input: Tensor) -> None:
    """Writes a quarter of `grad_output`, of any strides, where a bit is set, into zeros."""
    if len(bits):
        with torch.cuda.device_of(bits):
            _pool_backward[(triton.cdiv(len(bits), OCTETS),)](
                bits, grad_output.contiguous(), grad_input, grad_output.numel(),
                *grad_input.shape[-2:], wide=wide_type(grad_output.dtype), tile=OCTETS,
            )  # fmt: skip
