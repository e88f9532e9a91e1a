"""Squared deviations of estimated gradients from the full one, over minibatches and keys."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rad.data import Dataset
from rad.draws.reference import integers
from rad.errors import UsageError
from rad.functional.scaling import normalised
from rad.gradient_noise.full import FullGradient
from rad.gradient_noise.layers import exact_gradient, loss_and_gradient, weight_gradients
from rad.nn import Sketching
from rad.planning.variants import Built
from rad.sketches import (
    Identity,
    Sketch,
    fold_in,
    make_key,
)
from rad.training.task import Batch, Task, task_of

ALL = "all weights"
PARTS = ("minibatch", "sketch", "total")

Predicted = dict[tuple[str, Sketch], list[float]]
"""The closed forms of a weight and a sketch, one for each minibatch predicted."""

# Sub-key of the minibatches, far from those of the layers' draws.
MINIBATCHES = 1 << 32


@dataclass(frozen=True)
class Sampling:
    """How much is drawn: `minibatches`, `draws` of keys for each, from `seed`.

    The sketch's closed form is evaluated on the first `predictions` minibatches.

    Raises:
        UsageError: fewer than 2 minibatches (no standard error), 1 draw or 1 prediction, or
            more predictions than minibatches.
    """

    minibatches: int
    draws: int
    predictions: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("minibatches", 2), ("draws", 1), ("predictions", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name} is {value!r}; give a whole number of at least {least}")
        if self.predictions > self.minibatches:
            raise UsageError(
                f"predictions is {self.predictions}, of only {self.minibatches} minibatches; "
                "give at most as many"
            )


def measure(
    model: nn.Module,
    task: Task | Dataset,
    full: FullGradient,
    estimators: Sequence[Built],
    sampling: Sampling,
) -> pd.DataFrame:
    """One row for each estimator and weight, and one for all weights together.

    `model` is plain; `estimators` are its conversions by `rad.planning.variants.build`, `full`
    its full gradient G. For the exact gradient g of a minibatch and an estimate g_hat of it,
    `minibatch` is the mean of |g - G|^2, `sketch` of |g_hat - g|^2 and `total` of |g_hat - G|^2,
    each measured by itself; `<part>_error` is its standard error over minibatches (0 where nothing
    is random) and `<part>_predicted` its closed form, for the sketch given the minibatches: NaN
    for a model with layers that have none, such as a recurrent one.
    Estimators of equal batch size see the same minibatches.
    """
    rows: list[dict[str, Any]] = []
    for size in sorted({estimator.batch_size for estimator in estimators}):
        alike = [estimator for estimator in estimators if estimator.batch_size == size]
        rows += _of_batch_size(model, task_of(task), full, alike, sampling)
    return pd.DataFrame(rows)


def _of_batch_size(
    model: nn.Module,
    task: Task,
    full: FullGradient,
    estimators: Sequence[Built],
    sampling: Sampling,
) -> list[dict[str, Any]]:
    size, count = estimators[0].batch_size, task.size()
    key = fold_in(fold_in(make_key(sampling.seed, task.device), MINIBATCHES), size)
    samples: list[list[Tensor]] = [[] for _ in estimators]
    sketches = {(n, s) for e in estimators for n, s in _sketches(e).items()}
    predicted: Predicted = defaultdict(list)
    for number in range(sampling.minibatches):
        batch = task.batch(integers(fold_in(key, number), range(1), size, count)[0])
        traces, _ = exact_gradient(model, task, batch)
        exact = weight_gradients(model)
        for estimator, of_estimator in zip(estimators, samples, strict=True):
            of_estimator.append(_deviations(estimator, task, batch, exact, full, sampling.draws))
        if traces and number < sampling.predictions:
            responses = {name: each.noise_response() for name, each in traces.items()}
            for name, sketch in sketches:
                predicted[name, sketch].append(responses[name].to_sketch(sketch))
    return [
        row
        for estimator, of_estimator in zip(estimators, samples, strict=True)
        for row in _rows(
            estimator,
            torch.stack(of_estimator).cpu(),
            _predictions(estimator, full, predicted),
            full,
        )
    ]


def _sketches(estimator: Built) -> dict[str, Sketch]:
    """What is kept of the input of each weight."""
    return {
        f"{name}.weight".lstrip("."): module.sketch
        for name, module in estimator.model.named_modules()
        if isinstance(module, Sketching) and list(module.parameters(recurse=False))
    }


def _deviations(
    estimator: Built,
    task: Task,
    batch: Batch,
    exact: dict[str, Tensor],
    full: FullGradient,
    draws: int,
) -> Tensor:
    """The three squared deviations on one minibatch, mean over draws: (3, weights), float64."""
    minibatch = _squares(exact, full.gradients)
    if all(isinstance(sketch, Identity) for sketch in _sketches(estimator).values()):
        return torch.stack([minibatch, torch.zeros_like(minibatch), minibatch])
    sketch, total = torch.zeros_like(minibatch), torch.zeros_like(minibatch)
    for _ in range(draws):
        loss_and_gradient(estimator.model, task, batch)
        estimate = weight_gradients(estimator.model)
        sketch += _squares(estimate, exact) / draws
        total += _squares(estimate, full.gradients) / draws
    return torch.stack([minibatch, sketch, total])


def _squares(estimate: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """|estimate - truth|^2 of each weight: (weights,), float64."""
    deviations = (normalised(estimate[n] - truth[n]) for n in truth)
    return torch.stack([d.square().sum().double() * scale**2 for d, scale in deviations])


def _predictions(estimator: Built, full: FullGradient, predicted: Predicted) -> Tensor:
    """The three closed forms: (3, weights), float64."""
    sketches, batch_size = _sketches(estimator), estimator.batch_size
    minibatch = torch.tensor(
        [full.minibatch_variance(n, batch_size) for n in full.gradients], dtype=torch.float64
    )
    noise = torch.full_like(minibatch, math.nan)
    if predicted:
        means = [fmean(predicted[n, sketches[n]]) for n in full.gradients]
        noise = torch.tensor(means, dtype=torch.float64)
    return torch.stack([minibatch, noise, minibatch + noise])


def _rows(
    estimator: Built, samples: Tensor, predicted: Tensor, full: FullGradient
) -> list[dict[str, Any]]:
    """`samples` (minibatches, 3, weights), `predicted` (3, weights)."""
    samples = torch.cat([samples, samples.sum(-1, keepdim=True)], dim=-1)
    predicted = torch.cat([predicted, predicted.sum(-1, keepdim=True)], dim=-1)
    means, errors = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    norms = [full.squared_norm(name) for name in full.gradients]
    plan = estimator.plan
    return [
        {
            "weight": name,
            "shape": shape,
            "variant": plan.variant,
            "budget": plan.budget,
            "keep_fraction": plan.keep_fraction,
            "batch_size": plan.batch_size,
            "saved_bytes": plan.memory.saved_bytes,
            "squared_norm": norm,
        }
        | {
            f"{part}{suffix}": values[place, column].item()
            for place, part in enumerate(PARTS)
            for suffix, values in (("", means), ("_error", errors), ("_predicted", predicted))
        }
        for column, (name, shape, norm) in enumerate(
            zip([*full.gradients, ALL], [*_shapes(full), ""], [*norms, sum(norms)], strict=True)
        )
    ]


def _shapes(full: FullGradient) -> list[str]:
    return ["x".join(map(str, gradient.shape)) for gradient in full.gradients.values()]
