"""The sketches of all steps of a recurrence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rad.draws.dispatch import fold_in, step_keys
from rad.sketches.base import Sketch


def without_modes(x: Any) -> AbstractContextManager[object]:
    """For the many calls of torch that work on x makes: none goes through a `TorchFunctionMode`.

    Such a mode serves functional calls (`rad.nn.serving`), and takes microseconds of each. Without
    a mode nothing changes, nor for x of a class of its own, whose calls are its own affair.
    """
    if type(x) is not Tensor or not torch._C._len_torch_function_stack():
        return nullcontext()
    context: AbstractContextManager[object] = torch._C.DisableTorchFunction()
    return context


class KeptSteps:
    """The sketches of all steps, in buffers filled chunk by chunk.

    Step t draws with `fold_in(fold_in(key, place), t)`.
    """

    def __init__(self, steps: int, key: Tensor, place: int) -> None:
        self.steps, self.keys = steps, step_keys(fold_in(key, place), steps)
        self.tensors: tuple[Tensor, ...] = ()

    def add(self, sketch: Sketch, x: Tensor, steps: range) -> None:
        """Keep the sketch of x (len(steps), rows, d)."""
        parts = sketch.compress_steps(x, self.keys[steps.start : steps.stop])
        if not self.tensors:
            self.tensors = tuple(p.new_empty(self.steps, *p.shape[1:]) for p in parts)
        for whole, part in zip(self.tensors, parts, strict=True):
            whole[steps.start : steps.stop] = part
