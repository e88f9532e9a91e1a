"""The loss of a controlled simulation, with its adjoint, as an operator of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rad import backends
from rad.errors import UsageError
from rad.functional.second_order import OF_SIMULATION, refused
from rad.pde.adjoint import Adjoint
from rad.pde.cpu import engine as host
from rad.pde.problem import ReactionDiffusion


class _ControlLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        coefficients: Tensor,
        keys: Tensor,
        problem: ReactionDiffusion,
        adjoints: Sequence[Adjoint],
    ) -> Tensor:
        engine, keeps = _engine(coefficients), ctx.needs_input_grad[0]
        losses: Tensor
        losses, kept = engine.forward(problem, coefficients.detach(), adjoints, keys, keeps)
        ctx.problem, ctx.adjoints = problem, adjoints
        ctx.counts = [len(parts) for parts in kept]
        ctx.save_for_backward(coefficients, keys, *(part for parts in kept for part in parts))
        return losses

    @staticmethod
    @refused(OF_SIMULATION)
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, keys, *parts = ctx.saved_tensors
        rest = iter(parts)
        kept = [tuple(next(rest) for _ in range(count)) for count in ctx.counts]
        engine, numbers = _engine(coefficients), coefficients.detach()
        gradients = engine.backward(ctx.problem, numbers, ctx.adjoints, keys, kept)
        return gradients * grad_output[:, None, None], None, None, None


def _engine(coefficients: Tensor) -> ModuleType:
    """What runs simulations on that device."""
    if coefficients.is_cpu:
        return host
    if not backends.use_kernels(coefficients):
        raise UsageError(
            "off the CPU, simulations need Triton, and RAD_KERNELS not to be off; or use device=cpu"
        )
    from rad.pde.cuda import engine as gpu

    return gpu


def control_loss(
    problem: ReactionDiffusion,
    theta: Tensor,
    adjoint: Adjoint | Sequence[Adjoint],
    key: Tensor,
) -> Tensor:
    """The loss of `problem` under the control theta, differentiable in theta.

    The loss is exact. `adjoint` says what is kept for its gradient:

    - a `Sketch`: of each state phi_t, the sketch drawn with `fold_in(key, t)`. The
      equation is linear in phi, so that the adjoint lambda_t = dL/dphi_t runs back without
      phi; from the sketch's phi_hat_t come dL/dphi_t, which needs phi_t - target_t, and
      dL/dC_t = dt lambda_{t+1} phi_hat_t. lambda_{t+1} depends on later draws only: each
      product pairs independent unbiased estimates, so that the gradient is unbiased. With
      `Identity()` it is exact. A sample estimates phi_t - target_t, too, from its points alone.
    - `Residual(sketch)`: the same, sketching phi_t - target_t.
    - `Checkpointing(snapshots)`: some states, exact; the others are recomputed.

    Variance, with u_t = dt lambda_{t+1} dC_t/dtheta, psi_t = dphi_t/dtheta and noises e_t of
    phi_hat_t and r_t of dL/dphi_t, whose draws are independent over t: the sum over t of
    Var(u_t . e_t + psi_t . r_t), plus the sum over s > t of E (e_t^T M_ts r_s)^2, M_ts the
    propagator from t to s, of second order in (n^2 - 1)/k. Uniform samples with replacement:
    Var = (n^2 |z|^2 - (sum z)^2) / k, z_t = u_t * phi_t + psi_t * dL/dphi_t; without:
    times (n^2 - k)/(n^2 - 1). With residuals, phi_t - target_t takes the place of phi_t.

    Shapes: theta (P,) and key () -> (); or theta (B, P) and keys (B,) -> (B,): simulations
    side by side, with one adjoint for all or one for each, each as it would run alone.
    Differentiating twice raises RuntimeError. Raises UsageError for shapes that do not fit.
    Paper, section 5.
    """
    terms = len(problem.series)
    if theta.dim() not in (1, 2) or theta.shape[-1] != terms or key.shape != theta.shape[:-1]:
        raise UsageError(
            f"theta is {tuple(theta.shape)} and key {tuple(key.shape)}; give ({terms},) and (), "
            f"or (B, {terms}) and (B,), for a series of {terms} terms"
        )
    batch = theta.reshape(-1, terms)
    adjoints = list(adjoint) if isinstance(adjoint, Sequence) else [adjoint] * len(batch)
    if len(adjoints) != len(batch):
        raise UsageError(f"{len(adjoints)} adjoints for {len(batch)} simulations; give one each")
    coefficients = problem.series.matrix(batch)
    losses: Tensor = _ControlLoss.apply(coefficients, key.reshape(-1), problem, adjoints)
    return losses.to(theta.dtype).view(theta.shape[:-1])
