"""Simulations on a GPU: a launch runs all steps of all simulations of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from rad.errors import UsageError
from rad.pde.adjoint import Adjoint
from rad.pde.cuda.kernels import backward_kernel, forward_kernel
from rad.pde.fourier import modes
from rad.pde.problem import ReactionDiffusion
from rad.sketches import DifferentSample, Identity, SameSample

Kept = tuple[Tensor, ...]


class _Group(NamedTuple):
    """Simulations of one launch: all exact, or all sampled; `counts` values kept per state."""

    members: list[int]
    exact: bool
    counts: list[int]


def forward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoints: Sequence[Adjoint],
    keys: Tensor,
    keeps: bool,
) -> tuple[Tensor, list[Kept]]:
    """The losses (B,), and what is kept; that of a whole launch is its first simulation's."""
    losses = coefficients.new_empty(len(adjoints))
    kept: list[Kept] = [() for _ in adjoints]
    for group in _groups(problem, adjoints):
        size = sum(group.counts) * (problem.steps + 1) if keeps else 0
        values = coefficients.new_empty(size, dtype=problem.dtype)
        out = losses.new_empty(len(group.members))
        arrays = _arrays(problem, group, coefficients, keys, values, out)
        forward_kernel[(len(out),)](*arrays, **_sizes(problem, group), KEEPS=keeps)
        losses[group.members] = out
        kept[group.members[0]] = (values,) if keeps else ()
    return losses, kept


def backward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoints: Sequence[Adjoint],
    keys: Tensor,
    kept: Sequence[Kept],
) -> Tensor:
    """dL/d coefficients: (B, S, Q)."""
    gradients = torch.empty_like(coefficients)
    for group in _groups(problem, adjoints):
        (values,) = kept[group.members[0]]
        out = torch.empty_like(coefficients[group.members])
        arrays = _arrays(problem, group, coefficients, keys, values, out)
        pairs = triton.next_power_of_2(out[0].numel())
        backward_kernel[(len(out),)](*arrays, **_sizes(problem, group), MODES=pairs)
        gradients[group.members] = out
    return gradients


def _groups(problem: ReactionDiffusion, adjoints: Sequence[Adjoint]) -> list[_Group]:
    points = problem.inner**2
    exact, sampled = _Group([], True, []), _Group([], False, [])
    for i, adjoint in enumerate(adjoints):
        if isinstance(adjoint, Identity):
            group, count = exact, points
        elif isinstance(adjoint, DifferentSample | SameSample) and adjoint.replacement:
            group, count = sampled, adjoint.kept(points)
        else:
            raise UsageError(
                f"{adjoint} does not run on a GPU; take Identity or a sample with replacement, "
                "or device=cpu"
            )
        group.members.append(i)
        group.counts.append(count)
    return [group for group in (exact, sampled) if group.members]


def _arrays(
    problem: ReactionDiffusion,
    group: _Group,
    coefficients: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
) -> list[Tensor]:
    """The kernels' arguments, in their order."""
    like: dict[str, Any] = {"dtype": problem.dtype, "device": coefficients.device}
    counts = torch.tensor(group.counts, device=coefficients.device)
    offsets = (counts.cumsum(0) - counts) * (problem.steps + 1)
    numbers = (problem.rate, problem.dt, problem.dt / problem.points**2)
    angle = 2 * torch.pi * problem.interior_axis()
    space = modes(angle, problem.series.shape[0]).T.to(coefficients)
    return [
        coefficients[group.members],
        keys[group.members],
        counts,
        offsets,
        values,
        out,
        torch.zeros(len(group.members), 2, problem.points, problem.points, **like),
        F.pad(problem.initial(), (1, 1, 1, 1)).to(**like),
        F.pad(problem.swing(), (1, 1, 1, 1)).to(**like),
        F.pad(space, (0, _tile(problem) - problem.inner)).contiguous(),
        coefficients.new_tensor(numbers),
    ]


def _sizes(problem: ReactionDiffusion, group: _Group) -> dict[str, Any]:
    space, time = problem.series.shape
    return {
        "STEPS": problem.steps,
        "INNER": problem.inner,
        "TILE": _tile(problem),
        "SLOTS": 1 if group.exact else triton.next_power_of_2(max(group.counts)),
        "S": space,
        "Q": time,
        "EXACT": group.exact,
    }


def _tile(problem: ReactionDiffusion) -> int:
    return int(triton.next_power_of_2(problem.inner))
