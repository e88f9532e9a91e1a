"""Losses that a model computes by itself."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from rad import functional
from rad.nn.calls import Pass
from rad.nn.functions.registry import has_gradient, key_on_path, on_path, serves


@serves(F.cross_entropy, keeps=on_path("its probabilities, rounded at random"))
def _cross_entropy(
    run: Pass,
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    key, sketch = key_on_path(run, input), run.calls.of_probabilities
    usual = (weight, size_average, reduce, label_smoothing) == (None, None, None, 0.0)
    if not (usual and reduction in ("mean", "sum") and has_gradient(input) and input.dim() == 2):
        return NotImplemented
    if key is None or sketch is None or target.is_floating_point():
        return NotImplemented
    return functional.cross_entropy(input, target, ignore_index, reduction, sketch=sketch, key=key)
