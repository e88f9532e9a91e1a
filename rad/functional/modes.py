"""Calls of torch that go past what watches them from outside."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_modes(x: Any) -> AbstractContextManager[object]:
    """For the many calls of torch that work on x makes: none goes through a `TorchFunctionMode`.

    Such a mode serves functional calls (`rad.nn.serving`), and takes microseconds of each. Without
    a mode nothing changes, nor for x of a class of its own, whose calls are its own affair.
    """
    if type(x) is not Tensor or not torch._C._len_torch_function_stack():
        return nullcontext()
    context: AbstractContextManager[object] = torch._C.DisableTorchFunction()
    return context
