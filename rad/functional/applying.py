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
