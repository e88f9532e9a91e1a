"""Calling autograd functions at less cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply`, past its search for torch.func's transforms where none is at work.

    That search looks at every argument, and takes as long as a small layer's product.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        plain: Tensor = function.apply(*arguments)
        return plain
    result: Tensor = super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]
    return result


def apart(*tensors: Tensor | None) -> list[Any]:
    """The tensors, a repeated one as a view of itself in compiled programs.

    There an autograd function that is given one tensor twice loses one of its gradients.
    """
    if not torch.compiler.is_compiling():
        return list(tensors)
    found: list[Tensor | None] = []
    for x in tensors:
        is_repeated = x is not None and any(x is other for other in found)
        found.append(x.view_as(x) if is_repeated and x is not None else x)
    return found
