"""What is measured of ways to train a model: bytes, time, and the noise of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rad.benchmarks.zoo import Specimen
from rad.memory import peak_bytes, saved_bytes
from rad.planning.timing import alternate, error_of_ratio, ratio_of_medians

DRAWS = 8
"""Gradients of which the error of a program is the mean."""


def measured(
    made: Specimen, models: Mapping[str, nn.Module], first: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Of each of the models, by name: bytes, time against the first's, error of the gradient.

    The models have the parameters of `made`'s. Times are left out where the first is not among
    them. `gradient_error` is E |g_hat - g|^2 of the whole gradient over |g|^2, and `of_minibatch`
    over the variance of the minibatch's own gradient, estimated from its two halves.
    """
    steps = {name: step_of(made, model) for name, model in models.items()}
    seconds = alternate(steps, rounds)
    plain = seconds.get(first)
    exact, noise = _gradient(made, made.model), _minibatch_variance(made)
    found = {}
    for name, model in models.items():
        error = _squared_error(made, model, exact)
        found[name] = {
            "saved_bytes": saved_bytes(partial(made.loss_of, model)),
            "peak_bytes": peak_bytes(steps[name]),
            **({} if plain is None else _times(seconds[name], plain)),
            "gradient_error": float(f"{error / exact.square().sum().item():.3g}"),
            "of_minibatch": float(f"{error / noise:.3g}"),
        }
    return found


def step_of(made: Specimen, model: nn.Module) -> Callable[[], None]:
    """A forward and a backward pass; the gradient is dropped."""

    def step() -> None:
        made.loss_of(model).backward()
        model.zero_grad(set_to_none=True)

    return step


def _times(seconds: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    return {
        "time_ratio": round(ratio_of_medians(seconds, plain), 3),
        "time_ratio_error": round(error_of_ratio(seconds, plain), 4),
    }


def _gradient(made: Specimen, model: nn.Module, part: slice = slice(None)) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(made.loss_of(model, part), parameters, allow_unused=True)
    return torch.cat([g.flatten().double() for g in grads if g is not None])


def _minibatch_variance(made: Specimen) -> float:
    """|g_1 - g_2|^2 / 4 of the gradients of the two halves: E |g - E g|^2 of the whole batch's."""
    inputs = made.inputs.values() if isinstance(made.inputs, dict) else made.inputs
    half = len(next(iter(inputs))) // 2
    one, other = (_gradient(made, made.model, p) for p in (slice(half), slice(half, 2 * half)))
    return (one - other).square().sum().item() / 4


def _squared_error(made: Specimen, model: nn.Module, exact: Tensor) -> float:
    errors = [(_gradient(made, model) - exact).square().sum().item() for _ in range(DRAWS)]
    return sum(errors) / DRAWS
