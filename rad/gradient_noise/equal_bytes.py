"""The noise of sketches that keep equal bytes of a linear layer's input, by kinds of input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rad import models
from rad.data import Dataset
from rad.draws.normal import normals
from rad.draws.reference import fold_in, integers, make_key
from rad.functional import linear_weight_grad_variance
from rad.gradient_noise.layers import trace
from rad.sketches import Sketch
from rad.sketches.base import squared_norm
from rad.sketches.directions import orthonormal
from rad.sketches.registry import SketchKind, kinds
from rad.training.task import task_of

BLOCKS = (None, 256, 1024, 4096)
"""Grids of rounding: the first that fits, as in planning."""

PRINCIPAL_FRACTIONS = (0.25, 0.5, 0.75, 0.9)
"""Of which `principal_project` takes the best for each input."""


class Rows(NamedTuple):
    """What a linear layer reads, x (n, d), and the gradients of its outputs (n, m)."""

    x: Tensor
    grad_output: Tensor


def normal_rows(n: int, d: int, m: int, decay: float, key: Tensor) -> Rows:
    """Normal rows whose j-th principal direction, which is no column, has the deviation
    j ** -decay; output gradients that do not depend on them."""
    x, turn, grad = (
        normals(fold_in(key, i), range(rows), columns, torch.float32)
        for i, (rows, columns) in enumerate([(n, d), (d, d), (n, m)])
    )
    return Rows((x * torch.arange(1, d + 1) ** -decay) @ orthonormal(turn), grad)


def trained_rows(dataset: Dataset, n: int, iterations: int, batch_size: int, seed: int) -> Rows:
    """Those of the feedforward net's second layer, after so many steps of Adam: n examples."""
    task, key = task_of(dataset), make_key(seed)
    model = models.build("feedforward", **dataset.model_arguments, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def some(step: int, size: int) -> Tensor:
        return integers(fold_in(key, step), range(1), size, task.size())[0]

    for step in range(iterations):
        batch = task.batch(some(step, batch_size))
        optimizer.zero_grad()
        task.loss(model(*batch.inputs), batch.targets).backward()
        optimizer.step()
    traces, _ = trace(model, task, task.batch(some(iterations, n)))
    second = list(traces.values())[1]
    return Rows(second.x.flatten(0, -2), second.grad_output.flatten(0, -2))


def noise_rows(
    rows: Rows, fraction: float, names: list[str], draws: int
) -> Iterator[dict[str, Any]]:
    """A row for each kind of sketch that fits into that fraction of x's bytes, with the most.

    `predicted` is E |dW_hat - dW|^2 / |dW|^2 in closed form, `measured` its mean over `draws` keys.
    """
    x, grad = rows
    exact = grad.t() @ x
    scale = squared_norm(exact).item()
    keys = [fold_in(make_key(0), i) for i in range(draws)]
    for name in names:
        found = {
            sketch: linear_weight_grad_variance(x, grad, sketch).item() / scale
            for sketch in _largest(kinds()[name], x, fraction * x.nbytes)
        }
        if not found:
            continue
        sketch = min(found, key=lambda each: found[each])
        estimates = (sketch.contract(grad, sketch.compress(x, k), tuple(x.shape), k) for k in keys)
        errors = torch.stack([squared_norm(each - exact) for each in estimates]) / scale
        yield {
            "variant": name,
            "sketch": str(sketch),
            "bytes": sketch.nbytes(tuple(x.shape), x.dtype),
            "predicted": found[sketch],
            "measured": errors.mean().item(),
            "standard_error": errors.std().item() / draws**0.5,
        }


def _largest(kind: SketchKind, x: Tensor, limit: float) -> list[Sketch]:
    """The sketches of a kind to choose from: the largest that fit into so many bytes of x."""
    options: list[dict[str, Any]] = [{}]
    if "principal_fraction" in kind.options:
        options = [{"principal_fraction": share} for share in PRINCIPAL_FRACTIONS]
    if "block" in kind.options:
        options = [{"block": block} for block in BLOCKS]
    shape = tuple(x.shape)

    def fits(sketch: Sketch) -> bool:
        return sketch.nbytes(shape, x.dtype) <= limit

    ladders = ([s for s in kind.ascending(shape, **each) if fits(s)] for each in options)
    return [fitting[-1] for fitting in ladders if fitting]
