"""Softmax and attention, which keep their probabilities where there is a path."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import functional
from rad.nn.calls import Pass
from rad.nn.functions.registry import has_gradient, key_on_path, on_path, serves


@serves(F.softmax, keeps=on_path("its result"))
def _softmax(
    run: Pass, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Any:
    return _softmax_along(run, input, dim, dtype)


@serves(torch.softmax, Tensor.softmax, keeps=on_path("its result"))
def _softmax_along(run: Pass, input: Any, dim: Any, dtype: Any = None, **others: Any) -> Any:
    if others:
        return NotImplemented
    path = run.calls.path
    if path is None or not isinstance(dim, int) or not has_gradient(input):
        return NotImplemented
    key = key_on_path(run, input)
    if key is None:
        return NotImplemented
    x = input if dtype is None else input.to(dtype)
    return functional.softmax(x, dim, sketch=path, key=key)


@serves(F.scaled_dot_product_attention, keeps=on_path("its probabilities, or of its values"))
def _attention(run: Pass, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    path, draw = run.calls.path, key_on_path(run, query)
    if path is None or draw is None:
        return NotImplemented
    return functional.scaled_dot_product_attention(
        query, key, value, *rest, **options, sketch=path, key=draw
    )
