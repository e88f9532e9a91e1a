"""Simulations on the CPU, side by side in threads: the compiled loops release the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from rad.pde.adjoint import Adjoint, Checkpointing
from rad.pde.cpu import checkpointing, sketched
from rad.pde.problem import ReactionDiffusion

Kept = tuple[Tensor, ...]
Result = TypeVar("Result")


def forward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoints: Sequence[Adjoint],
    keys: Tensor,
    keeps: bool,
) -> tuple[Tensor, list[Kept]]:
    """The losses (B,), and what is kept of each simulation: nothing unless `keeps`."""

    def simulate(i: int) -> tuple[float, Kept]:
        adjoint = adjoints[i]
        if isinstance(adjoint, Checkpointing):
            return checkpointing.forward(problem, coefficients[i], adjoint if keeps else None)
        return sketched.forward(problem, coefficients[i], adjoint if keeps else None, keys[i])

    done = _side_by_side(simulate, len(adjoints))
    return coefficients.new_tensor([loss for loss, _ in done]), [kept for _, kept in done]


def backward(
    problem: ReactionDiffusion,
    coefficients: Tensor,
    adjoints: Sequence[Adjoint],
    keys: Tensor,
    kept: Sequence[Kept],
) -> Tensor:
    """dL/d coefficients: (B, S, Q)."""

    def adjoin(i: int) -> Tensor:
        adjoint = adjoints[i]
        if isinstance(adjoint, Checkpointing):
            return checkpointing.backward(problem, coefficients[i], adjoint, kept[i])
        return sketched.backward(problem, coefficients[i], adjoint, keys[i], kept[i])

    return torch.stack(_side_by_side(adjoin, len(adjoints)))


def _side_by_side(simulate: Callable[[int], Result], count: int) -> list[Result]:
    if count == 1:
        return [simulate(0)]
    with ThreadPoolExecutor(min(count, torch.get_num_threads())) as pool:
        return list(pool.map(simulate, range(count)))
