"""Normalisations, which keep their normalised input where there is a path."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from rad import functional
from rad.nn.calls import Pass
from rad.nn.functions.registry import key_on_path, on_path, serves


@serves(F.layer_norm, keeps=on_path("its normalised input"))
def _layer_norm(
    run: Pass,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
) -> Any:
    key, path = key_on_path(run, input), run.calls.path
    if key is None or path is None:
        return NotImplemented
    return functional.layer_norm(
        input, tuple(normalized_shape), weight, bias, eps, sketch=path, key=key
    )


@serves(F.rms_norm, torch.rms_norm, keeps=on_path("its normalised input"))
def _rms_norm(
    run: Pass, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    key, path = key_on_path(run, input), run.calls.path
    if key is None or path is None:
        return NotImplemented
    return functional.rms_norm(input, tuple(normalized_shape), weight, eps, sketch=path, key=key)


@serves(F.group_norm, keeps=on_path("its normalised input"))
def _group_norm(
    run: Pass, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    key, path = key_on_path(run, input), run.calls.path
    if key is None or path is None:
        return NotImplemented
    return functional.group_norm(input, num_groups, weight, bias, eps, sketch=path, key=key)


@serves(F.instance_norm, keeps=on_path("its normalised input"))
def _instance_norm(
    run: Pass,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    key, path = key_on_path(run, input), run.calls.path
    if key is None or path is None:
        return NotImplemented
    rest = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    return functional.instance_norm(input, *rest, sketch=path, key=key)
