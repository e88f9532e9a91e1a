"""What is compared on the PDE: each is a simulation and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rad.errors import UsageError
from rad.pde import Adjoint, ReactionDiffusion, control_loss
from rad.pde.plan import plan
from rad.pde.training import initial_theta
from rad.sketches import fold_in, make_key


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
    problem: ReactionDiffusion, fractions: Sequence[float], simulations: int, device: torch.device
) -> dict[str, PdeProgram]:
    """The exact adjoint first, then at each fraction of the states the sampled adjoint, and
    binomial checkpointing in the bytes of that (not on a GPU, where it does not run).

    Raises:
        UsageError: several simulations on a CPU, where each has a thread of its own, in which
            `peak_bytes` sees nothing.
    """
    if device.type == "cpu" and simulations != 1:
        raise UsageError(f"pde.simulations is {simulations}; on a CPU give 1")
    variants = ["different_sample", *(["checkpointing"] if device.type == "cpu" else [])]
    start = initial_theta(problem.series, seed=0).expand(simulations, -1).to(device)
    keys = torch.stack([fold_in(make_key(0, device), i) for i in range(simulations)])
    adjoints: dict[str, Adjoint] = {"exact": plan(problem, "baseline", "full").adjoint}
    for variant in variants:
        for fraction in fractions:
            adjoints[f"{variant} {fraction:g}"] = plan(problem, variant, fraction).adjoint
    return {
        name: PdeProgram(problem, adjoint, nn.Parameter(start.clone()), keys)
        for name, adjoint in adjoints.items()
    }
