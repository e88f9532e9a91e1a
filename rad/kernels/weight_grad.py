# mypy: disallow-untyped-defs=False
"""grad_output^T x_hat of a linear layer from what was kept of x: no dense buffer in memory.

A program holds a tile of the result. For some rows at a time it makes a tile of x_hat on chip, and
multiplies. Sums run in float32, the products too, unless torch is set to use TF32.

- `sampled` draws the rows' columns again and adds what was kept of them. Each number of a tile
  costs a comparison with all k slots of its row.
- `rounded` unpacks codes and places them on their grids, and draws again what dithered them.

Both do that anew for every tile of output features: for layers as small as the paper's that is
less than it takes to launch the operators instead, for large ones more than the product.
MAX_WORK and MAX_READS draw the line, from counts of operations (at most some 30 us of an H100);
they were not tuned on a device.

Convolutions have no such kernel: their weight gradient stays with torch, one piece of the batch
read densely at a time. A kept number is multiplied with kernel-size^2 x out_channels gradients
that lie scattered over the output, so that from kept positions alone every load is a gather; the
dense product runs on tensor cores, which a keep fraction of a tenth does not outweigh, and the
piece bounds the buffer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws.kernels import integer
from rad.kernels.rounding import read
from rad.packing.codes import Blocks

ROWS, SLOTS, COLUMNS, OUTPUTS = 16, 16, 32, 64
MAX_WORK = 1 << 28
MAX_READS = 1 << 22


@triton.jit
def _tile(d, tile_outputs: tl.constexpr, tile_columns: tl.constexpr):
    """The outputs and columns of a program's part of the result."""
    across = (d + tile_columns - 1) // tile_columns
    column = tl.program_id(0) % across * tile_columns + tl.arange(0, tile_columns)
    output = tl.program_id(0) // across * tile_outputs + tl.arange(0, tile_outputs)
    return output, column


@triton.jit
def _gradients(grad, output, row, outputs, rows, grad_column, grad_row):
    """The gradients of those outputs in those rows: (outputs, rows), 0 beyond them."""
    place = output[:, None].to(tl.int64) * grad_column + row[None, :].to(tl.int64) * grad_row
    inside = (output < outputs)[:, None] & (row < rows)[None, :]
    return tl.load(grad + place, mask=inside, other=0).to(tl.float32)


@triton.jit
def _store(out, total, output, column, outputs, d):
    inside = (output < outputs)[:, None] & (column < d)[None, :]
    place = output[:, None].to(tl.int64) * d + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sampled(
    grad, kept, key, out, rows, d, k, outputs, grad_row, grad_column,
    tile_rows: tl.constexpr, tile_slots: tl.constexpr, tile_columns: tl.constexpr,
    tile_outputs: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    output, column = _tile(d, tile_outputs, tile_columns)
    word = tl.load(key).to(tl.uint64)
    total = tl.zeros((tile_outputs, tile_columns), tl.float32)
    for first in range(0, rows, tile_rows):
        row = first + tl.arange(0, tile_rows)
        x_hat = tl.zeros((tile_rows, tile_columns), tl.float32)
        for start in range(0, k, tile_slots):
            slot = start + tl.arange(0, tile_slots)[None, :]
            inside = (row < rows)[:, None] & (slot < k)
            place = row[:, None].to(tl.int64) * k + slot
            value = tl.load(kept + place, mask=inside, other=0).to(tl.float32)
            drawn = integer(word, row[:, None], slot, d)
            same = drawn[:, :, None] == column[None, None, :]
            x_hat += tl.sum(tl.where(same, value[:, :, None], 0.0), 1)
        part = _gradients(grad, output, row, outputs, rows, grad_column, grad_row)
        total = tl.dot(part, x_hat, acc=total, input_precision=precision)
    scaled = total * (tl.cast(d, tl.float64) / tl.cast(k, tl.float64)).to(tl.float32)
    _store(out, scaled, output, column, outputs, d)


def pays(grad_output: Tensor, kept: Tensor, d: int) -> bool:
    """Whether `sampled` is meant for these: see the module. float64 is not."""
    tiles = triton.cdiv(grad_output.shape[1], OUTPUTS)
    small = kept.numel() * d * tiles <= MAX_WORK
    return small and torch.float64 not in (grad_output.dtype, kept.dtype)


def sampled(grad_output: Tensor, kept: Tensor, key: Tensor, d: int) -> Tensor:
    """grad_output^T x_hat for what `DifferentSample` kept of x, with replacement.

    Shapes: grad_output (n, out_features), kept (n, k) -> (out_features, d). Any device that
    Triton runs on.
    """
    (rows, outputs), k = grad_output.shape, kept.shape[1]
    out = grad_output.new_empty(outputs, d)
    if out.numel():
        grid = (triton.cdiv(d, COLUMNS) * triton.cdiv(outputs, OUTPUTS),)
        with torch.cuda.device_of(kept):
            _sampled[grid](
                grad_output, kept.contiguous(), key, out, rows, d, k, outputs,
                *grad_output.stride(), tile_rows=ROWS, tile_slots=SLOTS, tile_columns=COLUMNS,
                tile_outputs=OUTPUTS, precision=_precision(),
            )  # fmt: skip
    return out


@triton.jit
def _rounded(
    grad, low_plane, high_plane, scales, key, out, rows, d, outputs, grad_row, grad_column, size,
    bits: tl.constexpr, dithered: tl.constexpr, zero_code: tl.constexpr,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, tile_outputs: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    output, column = _tile(d, tile_outputs, tile_columns)
    word = tl.load(key).to(tl.uint64)
    total = tl.zeros((tile_outputs, tile_columns), tl.float32)
    for first in range(0, rows, tile_rows):
        row = first + tl.arange(0, tile_rows)
        inside = (row < rows)[:, None] & (column < d)[None, :]
        place = row[:, None].to(tl.int64) * d + column[None, :]
        x_hat = read(
            low_plane, high_plane, scales, word, place, inside, size,
            bits, dithered, zero_code, tl.float32,
        )  # fmt: skip
        x_hat = tl.where(inside, x_hat, 0.0)
        part = _gradients(grad, output, row, outputs, rows, grad_column, grad_row)
        total = tl.dot(part, x_hat, acc=total, input_precision=precision)
    _store(out, total, output, column, outputs, d)


def rounded_pays(grad_output: Tensor, d: int) -> bool:
    """Whether `rounded` is meant for these: see the module. float64 is not."""
    tiles = triton.cdiv(grad_output.shape[1], OUTPUTS)
    return len(grad_output) * d * tiles <= MAX_READS and grad_output.dtype != torch.float64


def rounded(
    grad_output: Tensor, saved: tuple[Tensor, ...], key: Tensor, d: int, of: Blocks
) -> Tensor:
    """grad_output^T x_hat for what rounding kept of x (n, d) in such blocks, float32 at most.

    Shapes: grad_output (n, out_features) -> (out_features, d). Any device that Triton runs on.
    """
    *planes, scales = saved
    rows, outputs = grad_output.shape
    out = grad_output.new_empty(outputs, d)
    if out.numel():
        grid = (triton.cdiv(d, COLUMNS) * triton.cdiv(outputs, OUTPUTS),)
        with torch.cuda.device_of(scales):
            _rounded[grid](
                grad_output, planes[0], planes[-1], scales, key, out, rows, d, outputs,
                *grad_output.stride(), of.size, bits=of.bits,
                dithered=of.dithered, zero_code=of.zero_code, tile_rows=ROWS,
                tile_columns=COLUMNS, tile_outputs=OUTPUTS, precision=_precision(),
            )  # fmt: skip
    return out


def _precision() -> str:
    """The precision of float32 products that torch is set to on CUDA, by whichever setting."""
    setting = torch.backends.cuda.matmul.fp32_precision
    if setting == "none":
        setting = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"
