"""The gradient over the whole training set, and the noise of minibatches in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rad.data import Dataset
from rad.gradient_noise.layers import (
    exact_gradient,
    has_closed_forms,
    weight_gradients,
    weight_layers,
    weights,
)
from rad.training.task import Task, task_of


@dataclass(frozen=True)
class FullGradient:
    """Means over all N training examples: the loss, each weight's gradient G, and |g_n|^2.

    The latter are missing for models without closed forms.
    """

    loss: float
    gradients: dict[str, Tensor]
    example_squares: dict[str, float]

    def squared_norm(self, name: str) -> float:
        """|G|^2."""
        return self.gradients[name].double().square().sum().item()

    def minibatch_variance(self, name: str, batch_size: int) -> float:
        """E |g_B - G|^2 of B examples drawn with replacement: (mean |g_n|^2 - |G|^2) / B.

        NaN where it is not known.
        """
        if not self.example_squares:
            return math.nan
        return (self.example_squares[name] - self.squared_norm(name)) / batch_size


def full_gradient(model: nn.Module, task: Task | Dataset, chunk: int = 1000) -> FullGradient:
    """The exact gradient of a plain model, `chunk` examples at a time, summed in float64."""
    task = task_of(task)
    count, device = task.size(), task.device
    gradients = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in weights(model).items()}
    known = list(weight_layers(model)) if has_closed_forms(model) else []
    squares = {name: torch.zeros((), dtype=torch.float64, device=device) for name in known}
    total = 0.0
    for start in range(0, count, chunk):
        indices = torch.arange(start, min(start + chunk, count), device=device)
        traces, loss = exact_gradient(model, task, task.batch(indices))
        total += loss * len(indices)
        for name, gradient in weight_gradients(model).items():
            gradients[name] += gradient.double() * len(indices)
            if name in traces:
                squares[name] += traces[name].example_squares().double().sum()
    return FullGradient(
        loss=total / count,
        gradients={n: (g / count).to(weights(model)[n].dtype) for n, g in gradients.items()},
        example_squares={name: square.item() / count for name, square in squares.items()},
    )
