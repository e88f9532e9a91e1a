"""The sketches of all steps of a recurrence."""

from __future__ import annotations

from torch import Tensor

from rad.draws.dispatch import fold_in, step_keys
from rad.sketches.base import Sketch


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
