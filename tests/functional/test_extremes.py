"""Every sketch on every operator: zeros, constant rows, extreme scales, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import LOSSY
from torch import Tensor

from rad.functional import conv, linear
from rad.functional.recurrent import rnn
from rad.sketches import Identity, ImportanceSampling, RotatedRounding, Sketch, make_key
from rad.sketches.blockwise import Rounding

WeightGrad = Callable[[Tensor, Sketch], Tensor]
ROUNDING = {name: s for name, s in LOSSY.items() if isinstance(s, Rounding | RotatedRounding)}
UNROTATED = {name: s for name, s in LOSSY.items() if isinstance(s, Rounding)}
every_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
every_rounding = pytest.mark.parametrize("sketch", ROUNDING.values(), ids=ROUNDING.keys())


def _gradient(output: Tensor, weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    grad_output = torch.randn(output.shape, generator=generator)
    return torch.autograd.grad(output, weight, grad_output)[0]


def of_linear(x: Tensor, sketch: Sketch) -> Tensor:
    weight = torch.ones(3, 12, requires_grad=True)
    return _gradient(linear(x.reshape(-1, 12), weight, sketch=sketch, key=make_key(2)), weight)


def of_conv(x: Tensor, sketch: Sketch) -> Tensor:
    weight = torch.ones(3, 2, 3, 3, requires_grad=True)
    image = x.reshape(-1, 2, 3, 4)
    return _gradient(conv(image, weight, padding=1, sketch=sketch, key=make_key(2)), weight)


def of_rnn(x: Tensor, sketch: Sketch) -> Tensor:
    """That of the input's weight: the states are never more than the input's numbers."""
    sequence, hidden = x.reshape(2, -1, 12), 3
    weight = torch.ones(hidden, 12, requires_grad=True)
    state = torch.zeros(sequence.shape[1], hidden)
    still = torch.zeros(hidden, hidden)
    output, _ = rnn(sequence, state, weight, still, sketch=sketch, key=make_key(2))
    assert output is not None
    return _gradient(output, weight)


OPERATORS: dict[str, WeightGrad] = {"linear": of_linear, "conv": of_conv, "rnn": of_rnn}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


def numbers() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(4, 2, 12) + 0.5  # positive: every unit of the recurrent layer is active


@every_operator
@every_sketch
def test_zeros_have_no_gradient(operator: WeightGrad, sketch: Sketch) -> None:
    assert not operator(torch.zeros(4, 2, 12), sketch).any()


@every_operator
@pytest.mark.parametrize("sketch", UNROTATED.values(), ids=UNROTATED.keys())
def test_constant_rows_are_exact(operator: WeightGrad, sketch: Rounding) -> None:
    x = numbers()[..., :1].expand(4, 2, 12)
    if sketch.block is not None:
        x = torch.full_like(x, 0.75)
    torch.testing.assert_close(operator(x, sketch), operator(x, Identity()))


@every_operator
@every_sketch
@pytest.mark.parametrize("exponent", [-90, 50])
def test_the_scale_of_the_input_is_that_of_the_gradient(
    operator: WeightGrad, sketch: Sketch, exponent: int
) -> None:
    """To the bit, the scale being a power of two; beyond what squares of float32 can hold."""
    x, scale = numbers(), 2.0**exponent
    assert torch.equal(operator(x * scale, sketch), operator(x, sketch) * scale)


@every_operator
@every_rounding
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_shows(operator: WeightGrad, sketch: Sketch, poison: float) -> None:
    x = numbers()
    x[1, 1, 5] = poison
    assert operator(numbers(), sketch).isfinite().all()
    assert not operator(x, sketch).isfinite().all()


@every_operator
def test_importance_sampling_keeps_what_is_not_finite(operator: WeightGrad) -> None:
    x = numbers()
    x[1, 1, 5] = math.nan
    assert not operator(x, ImportanceSampling(0.4)).isfinite().all()
