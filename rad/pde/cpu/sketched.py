"""One simulation whose adjoint reads a sketch of each state, or of its residual.

Kept between forward and backward: the sketches of all states, nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rad.pde.adjoint import Residual
from rad.pde.cpu.chunks import chunk_steps, chunks, new_buffer
from rad.pde.cpu.grid import lay_out
from rad.pde.cpu.points import add_target
from rad.pde.cpu.sketches import Estimate, final_adjoint, keep, kept_per_chunk, read
from rad.pde.cpu.steps import sweep, sweep_back
from rad.pde.problem import ReactionDiffusion
from rad.sketches import Sketch


def forward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoint: Sketch | Residual | None,
    key: Tensor,
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss, and what is kept of states 0..steps; nothing where `adjoint` is None.

    Shapes: tensors (steps + 1, ...); (chunks + 1, ...) for what the states of a chunk share.
    """
    grid, buffer = lay_out(problem), new_buffer(problem)
    sketch = adjoint.sketch if isinstance(adjoint, Residual) else adjoint
    loss, kept = 0.0, _Kept(problem, sketch)

    def sketched(states: Tensor, first: int) -> tuple[Tensor, ...]:
        assert sketch is not None
        if isinstance(adjoint, Residual):
            add_target(grid, first, -1.0, states.numpy())
        return keep(sketch, grid, states, first, key)

    for steps in chunks(problem):
        states = buffer[: len(steps) + 1]
        loss += sweep(grid, coefficients.numpy(), steps.start, states.numpy())
        if sketch is not None:
            kept.add(sketched(states[:-1], steps.start), steps)
        buffer[0] = states[-1]
    if sketch is not None:
        kept.add(sketched(buffer[:1], problem.steps), _last(problem))
    return loss, kept.tensors


def backward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoint: Sketch | Residual,
    key: Tensor,
    kept: tuple[Tensor, ...],
) -> Tensor:
    """dL/d coefficients as estimated from what was kept: float64, (S, Q)."""
    grid, numbers = lay_out(problem), coefficients.numpy()
    gradient = np.zeros_like(numbers)
    residual = isinstance(adjoint, Residual)
    sketch = adjoint.sketch if isinstance(adjoint, Residual) else adjoint

    def estimate(steps: range) -> Estimate:
        part = _parts(problem, sketch, kept, steps)
        return read(sketch, grid, part, steps.start, key)._replace(residual=residual)

    backwards = final_adjoint(grid, problem.steps, estimate(_last(problem)))
    for steps in reversed(chunks(problem)):
        sweep_back(grid, numbers, steps.start, *estimate(steps), backwards, gradient)
    return torch.from_numpy(gradient)


class _Kept:
    """The sketches of all states, in tensors filled chunk by chunk."""

    def __init__(self, problem: ReactionDiffusion, sketch: Sketch | None) -> None:
        self.problem, self.sketch = problem, sketch
        self.tensors: tuple[Tensor, ...] = ()

    def add(self, parts: tuple[Tensor, ...], steps: range) -> None:
        assert self.sketch is not None
        places = _places(self.problem, self.sketch, steps, len(parts))
        if not self.tensors:
            sizes = (self.problem.steps + 1, len(chunks(self.problem)) + 1)
            by_chunk = len(parts) - kept_per_chunk(self.sketch)
            self.tensors = tuple(
                part.new_empty(sizes[number >= by_chunk], *part.shape[1:])
                for number, part in enumerate(parts)
            )
        for whole, part, place in zip(self.tensors, parts, places, strict=True):
            whole[place] = part


def _last(problem: ReactionDiffusion) -> range:
    """The state after all steps, a chunk by itself."""
    return range(problem.steps, problem.steps + 1)


def _parts(
    problem: ReactionDiffusion, sketch: Sketch, kept: tuple[Tensor, ...], steps: range
) -> tuple[Tensor, ...]:
    """What was kept of the states of a chunk."""
    places = _places(problem, sketch, steps, len(kept))
    return tuple(tensor[place] for tensor, place in zip(kept, places, strict=True))


def _places(problem: ReactionDiffusion, sketch: Sketch, steps: range, count: int) -> list[slice]:
    """Where what is kept of a chunk lies in each of the tensors: by state, or by chunk."""
    number = -(-steps.start // chunk_steps(problem))
    by_chunk = kept_per_chunk(sketch)
    states = slice(steps.start, steps.stop)
    return [states] * (count - by_chunk) + [slice(number, number + 1)] * by_chunk
