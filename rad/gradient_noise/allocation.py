"""What dividing a budget among the layers gains: the error of both allocations' gradients."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.conversion.modules import convert
from rad.data import Dataset
from rad.draws.reference import fold_in, integers, make_key
from rad.planning.variants import ALLOCATIONS, fit

BATCH = 150


def batch_of(dataset: Dataset, number: int) -> tuple[Tensor, Tensor]:
    """A batch drawn with replacement, a function of its number."""
    key = fold_in(make_key(0, dataset.train_labels.device), number)
    return dataset.batch(integers(key, range(1), BATCH, len(dataset.train_labels))[0])


def train(model: nn.Module, dataset: Dataset, steps: range, rate: float) -> None:
    """Exact Adam steps, in place; Adam starts anew with each call."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in steps:
        images, labels = batch_of(dataset, step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compare(
    model: nn.Module, dataset: Dataset, variant: str, budget: float, draws: int
) -> list[dict[str, Any]]:
    """One row an allocation, uniform first: E |g_hat - g|^2 / |g|^2 over all weights.

    Each is planned on one batch and measured on another, over so many draws, at equal saved bytes.
    """
    planned, measured = batch_of(dataset, 1_000_000), batch_of(dataset, 1_000_001)
    rows = []
    for allocation in ALLOCATIONS:
        plan = fit(
            model,
            (planned[0],),
            lambda output: F.cross_entropy(output, planned[1][: len(output)].clone()),
            budget,
            variant,
            allocation=allocation,
        )
        exact = gradient(model, *measured)
        converted = convert(model, plan.sketch, seed=1)
        errors = torch.tensor(
            [(gradient(converted, *measured) - exact).square().sum() for _ in range(draws)]
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


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """All weights' gradients, as one vector."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    grads = torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
    return torch.cat([grad.flatten() for grad in grads])
