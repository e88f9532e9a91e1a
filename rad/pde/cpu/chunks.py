"""A simulation is computed a chunk of steps at a time, in one buffer of dense states."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.pde.cpu.grid import lay_out
from rad.pde.problem import ReactionDiffusion

BUFFER_BYTES = 1 << 18


def chunk_steps(problem: ReactionDiffusion) -> int:
    """How many steps fit the buffer, at least one."""
    state_bytes = problem.points * (problem.points - 1) * problem.dtype.itemsize
    return max(1, min(problem.steps, BUFFER_BYTES // state_bytes - 1))


def chunks(problem: ReactionDiffusion) -> list[range]:
    """All steps, a buffer at a time."""
    size, end = chunk_steps(problem), problem.steps
    return [range(start, min(start + size, end)) for start in range(0, end, size)]


def new_buffer(problem: ReactionDiffusion) -> Tensor:
    """The initial state, and room for those after it: (m + 1, points, points - 1)."""
    initial = torch.from_numpy(lay_out(problem).initial)
    buffer = initial.new_zeros(chunk_steps(problem) + 1, *initial.shape)
    buffer[0] = initial
    return buffer
