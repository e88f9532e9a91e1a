"""States of a simulation, for figures and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rad.pde.cpu.chunks import chunks, new_buffer
from rad.pde.cpu.grid import lay_out
from rad.pde.cpu.steps import sweep
from rad.pde.problem import ReactionDiffusion


@torch.no_grad()
def trajectory(problem: ReactionDiffusion, theta: Tensor, steps: Sequence[int]) -> Tensor:
    """The states after the given numbers of steps, in that order, with their zero boundary.

    Shapes: theta (P,) -> (len(steps), points, points); the first axis of a state is x.
    """
    grid, buffer = lay_out(problem), new_buffer(problem)
    coefficients = problem.series.matrix(theta.detach()).numpy()
    found = {0: _framed(buffer[0])}
    for chunk in chunks(problem):
        states = buffer[: len(chunk) + 1]
        sweep(grid, coefficients, chunk.start, states.numpy())
        wanted = {step for step in steps if chunk.start < step <= chunk.stop}
        found |= {step: _framed(states[step - chunk.start]) for step in wanted}
        buffer[0] = states[-1]
    return torch.stack([found[step] for step in steps])


def _framed(state: Tensor) -> Tensor:
    """A state (points, points - 1) with its first boundary column: (points, points)."""
    return torch.nn.functional.pad(state, (1, 0)).clone()
