"""Estimates of the gradient of the PDE's control, by adjoints that sketch and by exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.draws.reference import fold_in, make_key
from rad.pde import Adjoint, Checkpointing, ReactionDiffusion, control_loss
from rad.sketches import Identity


def gradients(
    problem: ReactionDiffusion, theta: Tensor, adjoint: Adjoint, draws: int = 1
) -> Tensor:
    """Independent estimates of the gradient in theta (P,): (draws, P)."""
    many = theta.expand(draws, -1).clone().requires_grad_()
    keys = torch.stack([fold_in(make_key(0), i) for i in range(draws)])
    loss = control_loss(problem, many, adjoint, keys).sum()
    return torch.autograd.grad(loss, many)[0]


def error(
    problem: ReactionDiffusion, theta: Tensor, adjoint: Adjoint, exact: Tensor, draws: int
) -> float:
    """The root of the mean of |estimate - exact|^2 over so many draws; exact adjoints need one."""
    draws = 1 if isinstance(adjoint, Identity | Checkpointing) else draws
    off = gradients(problem, theta, adjoint, draws) - exact
    return off.square().sum(1).mean().sqrt().item()
