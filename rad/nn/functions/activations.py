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
from rad.nn.functions.registry import Server, has_gradient, of_derivative, serves
from rad.sketches import Identity


def _elementwise(
    run: Pass,
    x: Any,
    activation: Callable[[Tensor], Tensor],
    inplace: bool = False,
    is_two_valued: bool = False,
) -> Any:
    """A function number by number; of two-valued derivatives a bit tells which, exactly."""
    sketch = run.calls.of_two_values if is_two_valued else run.calls.of_derivatives
    if isinstance(sketch, Identity) or not has_gradient(x):
        return NotImplemented
    key = run.next_key(x.device)
    output = functional.elementwise(x, activation, sketch=sketch, key=key)
    return overwrite(x, output) if inplace else output


def _activation(name: str, is_two_valued: bool = False, **options: Any) -> Server:
    """Serves `name(input, *options, inplace=False)`, the options in torch's order."""
    order = [*options, "inplace"]

    def server(run: Pass, input: Any, *arguments: Any, **given: Any) -> Any:
        if len(arguments) > len(order) or not set(given) <= set(order):
            return NotImplemented
        values = {**options, "inplace": False} | dict(zip(order, arguments, strict=False)) | given
        inplace = values.pop("inplace")
        activation = Activation(name, tuple(values.values()))
        return _elementwise(run, input, activation, inplace, is_two_valued)

    server.__name__ = f"_{name}"
    return server


for _functions, _server in {
    (torch.tanh, Tensor.tanh): _activation("tanh"),
    (torch.sigmoid, Tensor.sigmoid, F.sigmoid): _activation("sigmoid"),
    (F.gelu,): _activation("gelu", approximate="none"),
    (F.silu,): _activation("silu"),
    (F.mish,): _activation("mish"),
    (F.softplus,): _activation("softplus", beta=1, threshold=20),
    (F.elu,): _activation("elu", alpha=1.0),
    (F.selu, torch.selu): _activation("selu"),
    (F.celu, torch.celu): _activation("celu", alpha=1.0),
    (F.hardswish,): _activation("hardswish"),
    (F.logsigmoid,): _activation("logsigmoid"),
    (F.softsign,): _activation("softsign"),
    (F.tanhshrink,): _activation("tanhshrink"),
    (F.leaky_relu,): _activation("leaky_relu", True, negative_slope=0.01),
    (F.hardsigmoid,): _activation("hardsigmoid", True),
    (F.hardtanh,): _activation("hardtanh", True, min_val=-1.0, max_val=1.0),
    (F.relu6,): _activation("relu6", True),
    (F.softshrink,): _activation("softshrink", True, lambd=0.5),
    (F.hardshrink, torch.hardshrink): _activation("hardshrink", True, lambd=0.5),
}.items():
    serves(*_functions, keeps=of_derivative)(_server)


@serves(torch.pow, Tensor.pow, Tensor.__pow__, keeps=of_derivative)
def _pow(run: Pass, input: Any, exponent: Any, **others: Any) -> Any:
    """A power that is a number, such as a square, of which torch keeps the input."""
    known = isinstance(exponent, int | float) and exponent not in (0, 1)
    if others or not known or torch.compiler.is_compiling():  # which takes Activations only
        return NotImplemented
    return _elementwise(run, input, partial(torch.pow, exponent=exponent))
