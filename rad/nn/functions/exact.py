"""Operators whose backward pass is exact, and keeps less than torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import functional
from rad.functional.dropout import random_key
from rad.functional.in_place import overwrite
from rad.nn.calls import Pass
from rad.nn.functions.registry import exactly, has_gradient, serves

T = Tensor


@serves(F.relu, torch.relu, T.relu, keeps=exactly("1 bit per unit"))
def _relu(run: Pass, input: Any, inplace: bool = False, **others: Any) -> Any:
    if others or not has_gradient(input):
        return NotImplemented
    return functional.relu(input, inplace=inplace)


@serves(torch.relu_, T.relu_, keeps=exactly("1 bit per unit"))
def _relu_in_place(run: Pass, input: Any) -> Any:
    return _relu(run, input, inplace=True)


@serves(F.dropout, keeps=exactly("its key"))
def _dropout(
    run: Pass, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    if not (training and has_gradient(input) and 0 < p <= 1):
        return NotImplemented
    output = functional.dropout(input, p, key=random_key(input.device))
    return overwrite(input, output) if inplace else output


def _max_pool(
    axes: int,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or not has_gradient(input):
        return NotImplemented
    return functional.max_pool(
        input, axes, kernel_size, stride or None, padding, dilation, ceil_mode
    )


@serves(F.max_pool1d, torch.max_pool1d, keeps=exactly("the place of each maximum in its window"))
def _max_pool1d(run: Pass, *arguments: Any, **options: Any) -> Any:
    return _max_pool(1, *arguments, **options)


@serves(F.max_pool2d, torch.max_pool2d, keeps=exactly("the place of each maximum in its window"))
def _max_pool2d(run: Pass, *arguments: Any, **options: Any) -> Any:
    return _max_pool(2, *arguments, **options)


@serves(F.max_pool3d, torch.max_pool3d, keeps=exactly("the place of each maximum in its window"))
def _max_pool3d(run: Pass, *arguments: Any, **options: Any) -> Any:
    return _max_pool(3, *arguments, **options)


@serves(F.avg_pool2d, keeps=exactly("the shape of its input"))
def _avg_pool2d(run: Pass, input: Any, *arguments: Any, **options: Any) -> Any:
    if not has_gradient(input):
        return NotImplemented
    return functional.avg_pool(input, 2, *arguments, **options)


@serves(F.adaptive_avg_pool2d, keeps=exactly("the shape of its input"))
def _adaptive_avg_pool2d(run: Pass, input: Any, output_size: Any) -> Any:
    if not has_gradient(input):
        return NotImplemented
    return functional.adaptive_avg_pool2d(input, output_size)


@serves(F.embedding, keeps=exactly("its indices, packed"))
def _embedding(
    run: Pass,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None or sparse or not has_gradient(weight):
        return NotImplemented
    return functional.embedding(input, weight, padding_idx, scale_grad_by_freq)
