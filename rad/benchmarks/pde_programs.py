"""What is compared on the PDE: each is a simulation and its adjoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rad.errors import UsageError
from rad.pde import Adjoint, ReactionDiffusion, control_loss
from rad.pde.plan import plan
from rad.pde.training import initial_theta
from rad.sketches import Identity, fold_in, make_key

EXACT = "exact"
"""The name of the program with the exact adjoint."""

ON_GPU = ("different_sample", "same_sample")
"""Variants that run on a GPU, sampling with replacement."""


@dataclass(frozen=True)
class PdeProgram:
    """The loss of simulations side by side, to differentiate in theta: (B, P), keys (B,)."""

    problem: ReactionDiffusion
    adjoint: Adjoint
    theta: nn.Parameter
    keys: Tensor

    @property
    def batch_size(self) -> int:
        """Simulations of a step."""
        return len(self.theta)

    def loss(self) -> Tensor:
        """All simulations; the sum of their losses."""
        return control_loss(self.problem, self.theta, self.adjoint, self.keys).sum()

    def step(self) -> None:
        """Simulations and their adjoints; gradients start afresh."""
        self.clear()
        self.loss().backward()

    def clear(self) -> None:
        """Forget the gradient."""
        self.theta.grad = None


def pde_programs(
    problem: ReactionDiffusion,
    adjoints: Mapping[str, Adjoint],
    simulations: int,
    device: torch.device,
) -> dict[str, PdeProgram]:
    """Each adjoint from the same start.

    Raises:
        UsageError: several simulations on a CPU, where each has a thread of its own, in which
            `peak_bytes` sees nothing.
    """
    if device.type == "cpu" and simulations != 1:
        raise UsageError(f"pde.simulations is {simulations}; give 1 on a CPU")
    start = initial_theta(problem.series, seed=0).expand(simulations, -1).to(device)
    keys = torch.stack([fold_in(make_key(0, device), i) for i in range(simulations)])
    return {
        name: PdeProgram(problem, adjoint, nn.Parameter(start.clone()), keys)
        for name, adjoint in adjoints.items()
    }


def adjoints_by_fraction(
    problem: ReactionDiffusion, fractions: Sequence[float], device: torch.device
) -> dict[str, Adjoint]:
    """The exact adjoint first, then at each fraction of the states the sampled adjoint, and
    binomial checkpointing in the bytes of that (not on a GPU, where it does not run).
    """
    variants = ["different_sample", *(["checkpointing"] if device.type == "cpu" else [])]
    adjoints: dict[str, Adjoint] = {EXACT: Identity()}
    for variant in variants:
        for fraction in fractions:
            adjoints[f"{variant} {fraction:g}"] = plan(problem, variant, fraction).adjoint
    return adjoints


def adjoints_by_variant(
    problem: ReactionDiffusion,
    fraction: float,
    variants: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> dict[str, Adjoint]:
    """The exact adjoint first, then variants in the bytes of samples of that fraction.

    Each of `variants` has a `name`, and options of that variant beside it. On a GPU those that do
    not run there are left out. Raises UsageError for what `rad.pde.plan.plan` refuses.
    """
    adjoints: dict[str, Adjoint] = {EXACT: Identity()}
    for entry in variants:
        if device.type != "cpu" and entry["name"] not in ON_GPU:
            continue
        options = {key: value for key, value in entry.items() if key != "name"}
        adjoints[entry["name"]] = plan(problem, entry["name"], fraction, **options).adjoint
    return adjoints
