"""What dividing a budget among the layers gains: the error of both allocations' gradients."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from rad.conversion.modules import convert
from rad.data import Dataset
from rad.draws.reference import fold_in, integers, make_key
from rad.planning.spend import ALLOCATIONS
from rad.planning.variants import fit
from rad.training.task import Batch, Task, task_of

BATCH = 150


def batch_of(task: Task, number: int) -> Batch:
    """A batch drawn with replacement, a function of its number."""
    key = fold_in(make_key(0, task.device), number)
    return task.batch(integers(key, range(1), BATCH, task.size())[0])


def train(model: nn.Module, task: Task | Dataset, steps: range, rate: float) -> None:
    """Exact Adam steps, in place; Adam starts anew with each call."""
    optimizer, task = torch.optim.Adam(model.parameters(), lr=rate), task_of(task)
    for step in steps:
        inputs, targets = batch_of(task, step)
        optimizer.zero_grad()
        task.loss(model(*inputs), targets).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compare(
    model: nn.Module, task: Task | Dataset, variant: str, budget: float, draws: int
) -> list[dict[str, Any]]:
    """One row per allocation, uniform first: E |g_hat - g|^2 / |g|^2 over all weights.

    Each is planned on one batch and measured on another, over so many draws, at equal saved bytes.
    """
    task = task_of(task)
    planned, measured = batch_of(task, 1_000_000), batch_of(task, 1_000_001)
    rows = []
    for allocation in ALLOCATIONS:
        plan = fit(
            model,
            planned.inputs,
            task.loss_on(planned.targets),
            budget,
            variant,
            allocation=allocation,
        )
        exact = gradient(model, task, measured)
        converted = convert(model, plan.sketch, seed=1)
        errors = torch.tensor(
            [(gradient(converted, task, measured) - exact).square().sum() for _ in range(draws)]
        )
        norm = exact.square().sum().item()
        rows.append(
            {
                "allocation": allocation,
                "saved_bytes": plan.memory.saved_bytes,
                "measured": errors.mean().item() / norm,
                "standard_error": errors.std().item() / math.sqrt(draws) / norm,
                "draws": draws,
                "keep_fractions": json.dumps(
                    {k: round(float(v), 4) for k, v in (plan.layers or {"all": budget}).items()}
                ),
            }
        )
    return rows


def gradient(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """All weights' gradients, as one vector."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    grads = torch.autograd.grad(task.loss(model(*batch.inputs), batch.targets), weights)
    return torch.cat([grad.flatten() for grad in grads])
