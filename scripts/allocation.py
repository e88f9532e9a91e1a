"""What dividing a budget among the layers gains: `python scripts/allocation.py`.

Plans both allocations on one batch and measures E |g_hat - g|^2 over all weights on another, at
equal saved bytes. Writes allocation.csv, its provenance and a figure.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from _cli import Task, run
from _device import choose, name_of
from omegaconf import DictConfig
from torch import Tensor, nn

import rad
from rad import data, models
from rad.data import Dataset
from rad.draws.reference import integers
from rad.errors import UsageError
from rad.planning.variants import ALLOCATIONS, fit
from rad.plotting import allocation_figure, save
from rad.results import provenance, write_atomic
from rad.sketches import fold_in, make_key

BATCH = 150
DATASETS = {"feedforward": ("mnist", 1.350e-3), "convnet": ("cifar10", 1.240e-3)}
"""Network -> data set and the paper's learning rate for full memory."""


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each network, moment, variant and allocation."""
    check(config, overrides)
    device, origin = choose(config.device), provenance()
    rows: list[dict[str, Any]] = []
    for network in config.networks:
        name, rate = DATASETS[network]
        dataset = data.load(name, config.data_root, device)
        model = models.build(network, dataset.image_shape, dataset.classes, config.seed).to(device)
        done = 0
        for iterations in sorted(config.iterations[network]):
            train(model, dataset, range(done, iterations), rate)
            done = iterations
            for variant in config.variants:
                label = {"network": network, "iteration": iterations, "variant": variant}
                found = compare(model, dataset, variant, config.budget, config.draws[network])
                rows += [{**label, **row} for row in found]
                print(
                    f"{label}: gain {found[0]['measured'] / found[1]['measured']:.2f}", flush=True
                )
    table = pd.DataFrame(rows)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n", float_format="%.6g")
    write_atomic(folder / "allocation.csv", text.getvalue().encode())
    summary = {"device": name_of(device), "threads": torch.get_num_threads(), **origin}
    write_atomic(folder / "allocation.json", (json.dumps(summary, indent=2) + "\n").encode())
    figure = allocation_figure(pd.read_csv(folder / "allocation.csv"))
    print(f"wrote {folder / 'allocation.csv'} and {save(figure, config.figure)[0]}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong without data."""
    for network in config.networks:
        if network not in DATASETS:
            raise UsageError(f"unknown network {network!r}: choose among {', '.join(DATASETS)}")
        if not config.iterations.get(network):
            raise UsageError(f"iterations.{network} is missing: give a list such as [0, 100]")
        if config.draws.get(network, 0) < 2:
            raise UsageError(f"draws.{network} must be at least 2")


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
    """One row an allocation, uniform first."""
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
        converted = rad.convert(model, plan.sketch, seed=1)
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


if __name__ == "__main__":
    run(Task(main, check), "allocation")
