"""In-place operators: what they write over, and the graph behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Overwrite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.of_view = x._is_view()
        ctx.mark_dirty(x)
        return x.copy_(value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor]:
        # Of a view, autograd takes None for no gradient of all that it is a view of.
        nothing = grad_output.new_zeros(()).expand_as(grad_output) if ctx.of_view else None
        return nothing, grad_output


def overwrite(x: Tensor, value: Tensor) -> Tensor:
    """x itself, holding `value` from now on: gradients by x go to `value` alone.

    Keeps nothing. Shapes: x and value alike. Raises RuntimeError where torch's in-place
    operators do, such as for a leaf that requires a gradient.
    """
    check_overwritable(x)
    if torch.compiler.is_compiling():
        return x.copy_(value)
    result: Tensor = _Overwrite.apply(x, value)
    return result


def check_overwritable(x: Tensor) -> None:
    """Raise RuntimeError, before x changes, if it is a leaf that requires a gradient."""
    if torch.is_grad_enabled() and x.requires_grad and x.is_leaf:
        raise RuntimeError(
            "a leaf tensor that requires a gradient cannot be changed in place: "
            "give the layer inplace=False, or a copy of the tensor"
        )
