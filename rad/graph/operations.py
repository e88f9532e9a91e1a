"""The operations that a traced function may use, each with its local derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """A differentiable function of scalars.

    `value(*arguments)` computes it and `derivatives(result, *arguments)` gives one local
    derivative for each argument; both raise what `math` raises outside of the domain.
    """

    name: str
    value: Callable[..., float]
    derivatives: Callable[..., tuple[float, ...]]


def _power(base: float, exponent: float) -> float:
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("a negative number has no real power with a fractional exponent")
    return result


def _power_derivatives(result: float, base: float, exponent: float) -> tuple[float, float]:
    by_exponent = result * math.log(base) if base > 0 else 0.0 if exponent > 0 else math.nan
    return (exponent * base ** (exponent - 1) if exponent != 0 else 0.0), by_exponent


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


ADD = Operation("+", lambda x, y: x + y, lambda r, x, y: (1.0, 1.0))
SUBTRACT = Operation("-", lambda x, y: x - y, lambda r, x, y: (1.0, -1.0))
MULTIPLY = Operation("*", lambda x, y: x * y, lambda r, x, y: (y, x))
DIVIDE = Operation("/", lambda x, y: x / y, lambda r, x, y: (1 / y, -r / y))
POWER = Operation("**", _power, _power_derivatives)
NEGATE = Operation("neg", lambda x: -x, lambda r, x: (-1.0,))
EXP = Operation("exp", math.exp, lambda r, x: (r,))
LOG = Operation("log", math.log, lambda r, x: (1 / x,))
SQRT = Operation("sqrt", math.sqrt, lambda r, x: (0.5 / r,))
SIN = Operation("sin", math.sin, lambda r, x: (math.cos(x),))
COS = Operation("cos", math.cos, lambda r, x: (-math.sin(x),))
TANH = Operation("tanh", math.tanh, lambda r, x: (1 - r * r,))
SIGMOID = Operation("sigmoid", _sigmoid, lambda r, x: (r * (1 - r),))
RELU = Operation("relu", lambda x: max(x, 0.0), lambda r, x: (float(x > 0),))
MEAN = Operation(
    "mean", lambda *xs: math.fsum(xs) / len(xs), lambda r, *xs: (1 / len(xs),) * len(xs)
)
