"""One simulation whose adjoint reads a sketch of each state.

Kept between forward and backward: the sketches of all states, nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rad.pde.chunks import chunks, new_buffer
from rad.pde.grid import lay_out
from rad.pde.loops import sweep, sweep_back
from rad.pde.problem import ReactionDiffusion
from rad.pde.states import final_adjoint, keep, read
from rad.sketches import Sketch


def forward(
    problem: ReactionDiffusion, coefficients: Tensor, sketch: Sketch | None, key: Tensor
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss, and what is kept of states 0..steps: tensors (steps + 1, ...); None: nothing."""
    grid, buffer = lay_out(problem), new_buffer(problem)
    loss, kept = 0.0, _Kept(problem.steps + 1)
    for steps in chunks(problem):
        states = buffer[: len(steps) + 1]
        loss += sweep(grid, coefficients.numpy(), steps.start, states.numpy())
        if sketch is not None:
            kept.add(keep(sketch, grid, states[:-1], steps.start, key), steps.start)
        buffer[0] = states[-1]
    if sketch is not None:
        kept.add(keep(sketch, grid, buffer[:1], problem.steps, key), problem.steps)
    return loss, kept.tensors


def backward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    sketch: Sketch,
    key: Tensor,
    kept: tuple[Tensor, ...],
) -> Tensor:
    """dL/d coefficients as estimated from what was kept: float64, (S, Q)."""
    grid, numbers = lay_out(problem), coefficients.numpy()
    gradient = np.zeros_like(numbers)
    last = tuple(part[-1:] for part in kept)
    adjoint = final_adjoint(grid, problem.steps, read(sketch, grid, last, problem.steps, key))
    for steps in reversed(chunks(problem)):
        part = tuple(tensor[steps.start : steps.stop] for tensor in kept)
        states = read(sketch, grid, part, steps.start, key)
        sweep_back(grid, numbers, steps.start, *states, adjoint, gradient)
    return torch.from_numpy(gradient)


class _Kept:
    """The sketches of all states, in tensors filled chunk by chunk."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.tensors: tuple[Tensor, ...] = ()

    def add(self, parts: tuple[Tensor, ...], first: int) -> None:
        if not self.tensors:
            self.tensors = tuple(part.new_empty(self.count, *part.shape[1:]) for part in parts)
        for whole, part in zip(self.tensors, parts, strict=True):
            whole[first : first + len(part)] = part
