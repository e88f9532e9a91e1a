"""Activation functions that know their derivative, and that `torch.compile` can take by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _celu_backward(one: Tensor, x: Tensor, alpha: float) -> Tensor:
    inverse = 1 / float(np.float32(alpha))  # torch's, too, is of alpha in single precision
    result: Tensor = _aten.elu_backward(one, alpha, 1, inverse, False, x)
    return result


def _softsign_backward(one: Tensor, x: Tensor) -> Tensor:
    below = x.abs() + 1
    return one / below - x / below / below * x.sgn()


_DERIVATIVES: dict[str, Callable[..., Tensor]] = {
    "gelu": lambda one, x, approximate: _aten.gelu_backward(one, x, approximate=approximate),
    "silu": _aten.silu_backward,
    "mish": _aten.mish_backward,
    "tanh": lambda one, x: _aten.tanh_backward(one, x.tanh()),
    "sigmoid": lambda one, x: _aten.sigmoid_backward(one, x.sigmoid()),
    "softplus": _aten.softplus_backward,
    "elu": lambda one, x, alpha: _aten.elu_backward(one, alpha, 1, 1, False, x),
    "leaky_relu": lambda one, x, slope: _aten.leaky_relu_backward(one, x, slope, False),
    "selu": lambda one, x: _aten.elu_backward(one, _SELU_ALPHA, _SELU_SCALE, 1, False, x),
    "celu": _celu_backward,
    "hardswish": _aten.hardswish_backward,
    "hardsigmoid": _aten.hardsigmoid_backward,
    "hardtanh": _aten.hardtanh_backward,
    "relu6": lambda one, x: _aten.hardtanh_backward(one, x, 0, 6),
    "hardshrink": _aten.hardshrink_backward,
    "softshrink": _aten.softshrink_backward,
    "logsigmoid": lambda one, x: _aten.log_sigmoid_backward(
        one, x, _aten.log_sigmoid_forward(x)[1]
    ),
    "softsign": _softsign_backward,
    "tanhshrink": lambda one, x: one + _aten.tanh_backward(-one, x.tanh()),
}


@dataclass(frozen=True)
class Activation:
    """`torch.nn.functional.<name>(x, *arguments)`, of any shape, and its derivative by x.

    Names: those of `_DERIVATIVES`; all arguments are given, in torch's order. The derivative is
    computed by the operator that torch's own backward pass calls.
    """

    name: str
    arguments: tuple[Any, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        if self.name == "gelu":
            return F.gelu(x, approximate=self.arguments[0])
        result: Tensor = getattr(F, self.name)(x, *self.arguments)
        return result

    def derivative(self, x: Tensor) -> Tensor:
        """d f(x) / dx, number by number: x's shape and type."""
        return _DERIVATIVES[self.name](torch.ones_like(x), x, *self.arguments)
