"""One simulation whose exact adjoint recomputes the states: binomial checkpointing.

Kept between forward and backward: some states ("snapshots"), so placed that the fewest
steps are done again (Griewank and Walther, 2000). The unit of the schedule is a chunk of
steps, whose states a pass holds densely anyway. The initial state is known and takes no
snapshot.
"""

from __future__ import annotations

from math import comb

import numpy as np
import torch
from torch import Tensor

from rad.pde.adjoint import Checkpointing
from rad.pde.cpu.chunks import chunks, new_buffer
from rad.pde.cpu.grid import lay_out
from rad.pde.cpu.points import EVERY
from rad.pde.cpu.sketches import Estimate, all_points, final_adjoint
from rad.pde.cpu.steps import sweep, sweep_back
from rad.pde.problem import ReactionDiffusion


def split(length: int, snapshots: int) -> int:
    """After how many of `length` >= 2 units to take the next of `snapshots` free snapshots.

    With s snapshots besides the first state, comb(s + 1 + r, r) units can be reversed such
    that none is done again more than r times; r is the least that reaches `length`. Without
    any: before the last unit.
    """
    if snapshots == 0:
        return length - 1
    repeats = 1
    while comb(snapshots + 1 + repeats, repeats) < length:
        repeats += 1
    most_before = comb(snapshots + repeats, repeats - 1)
    least_after = comb(snapshots + repeats - 1, repeats - 1)
    return max(1, min(most_before, length - least_after))


def places(length: int, snapshots: int) -> list[int]:
    """The units before which the first sweep over `length` units takes a snapshot."""
    taken = [0]
    while snapshots and length - taken[-1] > 1:
        taken.append(taken[-1] + split(length - taken[-1], snapshots))
        snapshots -= 1
    return taken[1:]


def forward(
    problem: ReactionDiffusion, coefficients: Tensor, plan: Checkpointing | None
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss, and the snapshots, (snapshots, n^2), or nothing where `plan` is None."""
    sweeper = _Sweeper(problem, coefficients)
    wanted = places(len(sweeper.units), plan.snapshots) if plan else []
    kept = sweeper.buffer.new_empty(len(wanted), len(sweeper.grid.places))
    loss = 0.0
    for unit in range(len(sweeper.units)):
        if unit in wanted:
            kept[wanted.index(unit)] = sweeper.state()
        loss += sweeper.advance(unit)
    return loss, (kept,) if plan else ()


def backward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    plan: Checkpointing,
    kept: tuple[Tensor, ...],
) -> Tensor:
    """dL/d coefficients, exact: float64, (S, Q)."""
    sweeper = _Sweeper(problem, coefficients)
    stop = len(sweeper.units)
    starts = [0, *places(stop, plan.snapshots)]
    states = [sweeper.state(), *kept[0]]
    for taken in range(len(starts) - 1, -1, -1):
        _reverse(sweeper, states[taken], starts[taken], stop, plan.snapshots - taken)
        stop = starts[taken]
    return torch.from_numpy(sweeper.gradient)


def _reverse(sweeper: _Sweeper, state: Tensor, start: int, stop: int, snapshots: int) -> None:
    """The adjoint of units start .. stop - 1, given the state before them."""
    while stop - start > 1:
        middle = start + split(stop - start, snapshots)
        sweeper.load(state)
        for unit in range(start, middle):
            sweeper.advance(unit)
        _reverse(sweeper, sweeper.state(), middle, stop, max(0, snapshots - 1))
        stop = middle
    sweeper.load(state)
    sweeper.reverse(start)


class _Sweeper:
    """A sweep whose state stands at the head of a buffer; the adjoint and gradient so far."""

    def __init__(self, problem: ReactionDiffusion, coefficients: Tensor) -> None:
        self.grid, self.units = lay_out(problem), chunks(problem)
        self.buffer = new_buffer(problem)
        self.coefficients = coefficients.numpy()
        self.gradient = np.zeros_like(self.coefficients)
        self.adjoint = np.empty(0)

    def state(self) -> Tensor:
        """A copy of the state's interior: (n^2,)."""
        return all_points(self.grid, self.buffer[:1])[0]

    def load(self, state: Tensor) -> None:
        """Set the state's interior."""
        self.buffer[0].view(-1)[torch.from_numpy(self.grid.places)] = state

    def advance(self, unit: int) -> float:
        """Sweep over a unit; return its loss."""
        states, loss = self._fill(unit)
        self.buffer[0] = states[-1]
        return loss

    def reverse(self, unit: int) -> None:
        """Recompute the states of a unit and take the adjoint back over it."""
        values = all_points(self.grid, self._fill(unit)[0]).numpy()
        steps = self.units[unit]
        if unit == len(self.units) - 1:
            last = Estimate(EVERY, values[-1:], 1.0)
            self.adjoint = final_adjoint(self.grid, steps.stop, last)
        states = Estimate(EVERY, values[:-1], 1.0)
        sweep_back(self.grid, self.coefficients, steps.start, *states, self.adjoint, self.gradient)

    def _fill(self, unit: int) -> tuple[Tensor, float]:
        steps = self.units[unit]
        states = self.buffer[: len(steps) + 1]
        return states, sweep(self.grid, self.coefficients, steps.start, states.numpy())
