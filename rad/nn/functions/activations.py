"""Activation functions, of which a rounding of the derivative is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import functional
from rad.functional.activation import Activation
from rad.functional.in_place import overwrite
from rad.nn.calls import Pass
from rad.nn.functions.registry import (
    has_gradient,
    of_derivative,
    serves,
)
from rad.sketches import Identity

T = Tensor


def _elementwise(run: Pass, x: Any, activation: Callable[[T], T], inplace: bool = False) -> Any:
    """A function number by number, of which a rounding of the derivative is kept."""
    sketch = run.calls.of_derivatives
    if isinstance(sketch, Identity) or not has_gradient(x):
        return NotImplemented
    key = run.next_key(x.device)
    output = functional.elementwise(x, activation, sketch=sketch, key=key)
    return overwrite(x, output) if inplace else output


@serves(torch.tanh, T.tanh, keeps=of_derivative)
def _tanh(run: Pass, input: Any, **others: Any) -> Any:
    return NotImplemented if others else _elementwise(run, input, Activation("tanh"))


@serves(torch.sigmoid, T.sigmoid, F.sigmoid, keeps=of_derivative)
def _sigmoid(run: Pass, input: Any, **others: Any) -> Any:
    return NotImplemented if others else _elementwise(run, input, Activation("sigmoid"))


@serves(F.gelu, keeps=of_derivative)
def _gelu(run: Pass, input: Any, approximate: str = "none", **others: Any) -> Any:
    if others:
        return NotImplemented
    return _elementwise(run, input, Activation("gelu", (approximate,)))


@serves(F.silu, keeps=of_derivative)
def _silu(run: Pass, input: Any, inplace: bool = False) -> Any:
    return _elementwise(run, input, Activation("silu"), inplace)


@serves(F.mish, keeps=of_derivative)
def _mish(run: Pass, input: Any, inplace: bool = False) -> Any:
    return _elementwise(run, input, Activation("mish"), inplace)


@serves(F.softplus, keeps=of_derivative)
def _softplus(run: Pass, input: Any, beta: float = 1, threshold: float = 20) -> Any:
    return _elementwise(run, input, Activation("softplus", (beta, threshold)))


@serves(F.elu, keeps=of_derivative)
def _elu(run: Pass, input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return _elementwise(run, input, Activation("elu", (alpha,)), inplace)


@serves(F.leaky_relu, keeps=of_derivative)
def _leaky_relu(run: Pass, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _elementwise(run, input, Activation("leaky_relu", (negative_slope,)), inplace)


@serves(torch.pow, T.pow, T.__pow__, keeps=of_derivative)
def _pow(run: Pass, input: Any, exponent: Any, **others: Any) -> Any:
    """A power that is a number; squares, cubes: what keeps its input."""
    if others or not isinstance(exponent, int | float) or exponent in (0, 1):
        return NotImplemented
    return _elementwise(run, input, partial(torch.pow, exponent=exponent))
