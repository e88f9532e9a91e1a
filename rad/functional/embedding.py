"""An embedding that keeps its indices in as few bits as tell its rows apart.

Kept between forward and backward: the indices, packed into 1, 2, 4, 8, 16 or 32 bits each by the
number of rows (16 for 257 to 65,536). Torch keeps them as they are given, most often in 64. The
gradient is torch's: exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.backends.operators import opaque
from rad.errors import UsageError
from rad.functional.apply import apply
from rad.packing.bits import index_width, pack_integers, unpack_integers


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, indices: Tensor, padding_idx: int, scale_grad_by_freq: bool
    ) -> Tensor:
        ctx.shape, ctx.words = indices.shape, len(weight)
        ctx.options = padding_idx, scale_grad_by_freq
        output = torch.embedding(weight, indices, padding_idx, scale_grad_by_freq)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_packed_indices(indices, index_width(len(weight))))
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,) = ctx.saved_tensors
        indices = _unpacked_indices(packed, index_width(ctx.words), list(ctx.shape))
        grad_weight: Tensor = torch.ops.aten.embedding_dense_backward(
            grad_output, indices, ctx.words, *ctx.options
        )
        return grad_weight, None, None, None


@opaque()
def _packed_indices(indices: Tensor, bits: int) -> Tensor:
    return pack_integers(indices, bits)


@opaque()
def _unpacked_indices(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    return unpack_integers(packed, bits, torch.Size(shape))


def embedding(
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
) -> Tensor:
    """`torch.nn.functional.embedding` that keeps its indices packed.

    Shapes: indices (...) of int64 or int32, weight (rows, width) -> (..., width). Gradients of
    gradients are torch's. Sparse gradients and rows that are scaled down (`max_norm`) are left to
    torch's function. Raises what torch raises: IndexError for an index that is no row (on the CPU),
    RuntimeError for indices of another type; UsageError for a `padding_idx` that is no row.
    """
    rows = len(weight)
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise UsageError(
            f"a padding_idx of {padding_idx}: the embedding has {rows} rows; give one of them"
        )
    place = -1 if padding_idx is None else padding_idx % rows
    return apply(_Embedding, weight, indices, place, scale_grad_by_freq)
