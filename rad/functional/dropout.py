"""Dropout that remembers its key: the mask is drawn again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.sketches.random import lanes

_LEVELS = 1 << 16


class _KeyedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept_levels: int, key: Tensor) -> Tensor:
        ctx.kept_levels = kept_levels
        ctx.save_for_backward(key)
        return _drop(x, kept_levels, key)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (key,) = ctx.saved_tensors
        return _drop(grad_output, ctx.kept_levels, key), None, None


def _drop(x: Tensor, kept_levels: int, key: Tensor) -> Tensor:
    kept = (lanes(key, x.numel()) < kept_levels).view(x.shape)
    return torch.where(kept, x * (_LEVELS / max(kept_levels, 1)), 0)


def dropout(x: Tensor, p: float = 0.5, *, key: Tensor) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p).

    The mask is a function of the key and the element's place in a contiguous x, so
    nothing but the key is kept. p is rounded to a multiple of 2**-16, and the scale
    follows the rounded p. Any shape. Raises ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must lie in [0, 1], got {p}")
    result: Tensor = _KeyedDropout.apply(x, round((1 - p) * _LEVELS), key)
    return result
