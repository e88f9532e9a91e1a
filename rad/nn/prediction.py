"""What a call of a RAD layer keeps, computed from shapes: the counterpart of measuring it."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from rad.functional.elementwise import derivative_rows
from rad.functional.relu_pool import BITS
from rad.nn.activation import ReLU
from rad.nn.conv import Conv1d, Conv2d, Conv3d
from rad.nn.dropout import Dropout
from rad.nn.elementwise import _Elementwise
from rad.nn.linear import Linear
from rad.nn.pooling import ReLUAvgPool2d, _MaxPool, _ShapeOnly
from rad.nn.recurrent import RNN
from rad.packing.bits import packed_bytes
from rad.sketches import Identity
from rad.sketches.blockwise import Rounding

KEY_BYTES = 8

Exact = Callable[[Tensor], int]
"""Bytes of a tensor that is kept as it is: 0 where a layer before keeps it already."""


@singledispatch
def predicted_bytes(layer: nn.Module, x: Tensor, output: Any, exact: Exact) -> int:
    """Bytes that the call `output = layer(x)` of a RAD layer in training keeps for backward.

    Parameters excluded. Raises TypeError for a layer it does not know.
    """
    raise TypeError(f"no prediction for {type(layer).__name__}")


@predicted_bytes.register
def _(layer: Linear, x: Tensor, output: Tensor, exact: Exact) -> int:
    rows = (x.shape[:-1].numel(), x.shape[-1])
    return _layer_bytes(layer, x, rows, output, exact)


@predicted_bytes.register(Conv1d)
@predicted_bytes.register(Conv2d)
@predicted_bytes.register(Conv3d)
def _(layer: Conv1d | Conv2d | Conv3d, x: Tensor, output: Tensor, exact: Exact) -> int:
    space = x.shape[-len(layer.kernel_size) :]
    rows = (x.shape[: -len(space)].numel(), space.numel())
    return _layer_bytes(layer, x, rows, output, exact)


def _layer_bytes(
    layer: Linear | Conv1d | Conv2d | Conv3d,
    x: Tensor,
    rows: tuple[int, int],
    output: Tensor,
    exact: Exact,
) -> int:
    if not layer.weight.requires_grad:
        return KEY_BYTES
    if isinstance(layer.sketch, Identity) and x.dtype == output.dtype:
        return KEY_BYTES + exact(x)
    return KEY_BYTES + layer.sketch.nbytes(rows, output.dtype)


@predicted_bytes.register
def _(layer: ReLU, x: Tensor, output: Tensor, exact: Exact) -> int:
    return packed_bytes(output.numel()) if layer.mask == "packed" else exact(output)


@predicted_bytes.register
def _(layer: _ShapeOnly, x: Tensor, output: Tensor, exact: Exact) -> int:
    return 0


@predicted_bytes.register
def _(layer: ReLUAvgPool2d, x: Tensor, output: Tensor, exact: Exact) -> int:
    return packed_bytes(output.numel() * BITS)


@predicted_bytes.register
def _(layer: _MaxPool, x: Tensor, output: Tensor, exact: Exact) -> int:
    return packed_bytes(output.numel() * layer.bits)


@predicted_bytes.register
def _(layer: Dropout, x: Tensor, output: Tensor, exact: Exact) -> int:
    return KEY_BYTES


@predicted_bytes.register
def _(layer: _Elementwise, x: Tensor, output: Tensor, exact: Exact) -> int:
    if not isinstance(layer.sketch, Rounding):
        return 0  # it is torch's layer then, and whatever that keeps is beyond RAD's account
    return KEY_BYTES + layer.sketch.nbytes(tuple(derivative_rows(x).shape), output.dtype)


@predicted_bytes.register
def _(layer: RNN, x: Tensor, output: Any, exact: Exact) -> int:
    batched = x.dim() == 3
    steps = x.shape[1 if layer.batch_first and batched else 0]
    batch = x.shape[0 if layer.batch_first else 1] if batched else 1
    dtype = output[1].dtype
    directions = 2 if layer.bidirectional else 1
    total = 0
    for place in range(layer.num_layers):
        features = layer.hidden_size * directions if place else layer.input_size
        chained = place and directions == 1 and not (layer.dropout and layer.training)
        if isinstance(layer.sketch, Identity) and chained:
            inputs = 0  # the states of the layer below
        elif isinstance(layer.sketch, Identity) or features == 1:
            inputs = steps * batch * features * dtype.itemsize
        else:
            inputs = steps * layer.sketch.nbytes((batch, features), dtype)
        total += directions * (KEY_BYTES + inputs + _states_bytes(layer, steps, batch, dtype))
    return total


def _states_bytes(layer: RNN, steps: int, batch: int, dtype: torch.dtype) -> int:
    units = batch * layer.hidden_size
    if isinstance(layer.sketch, Identity) or layer.nonlinearity == "tanh":
        return (steps + 1) * units * dtype.itemsize
    sketches = steps * layer.sketch.nbytes((batch, layer.hidden_size), dtype)
    return sketches + packed_bytes(steps * units)
