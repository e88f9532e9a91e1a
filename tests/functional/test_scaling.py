"""Closed forms of variances at the ends of the numbers' range."""

import pytest
import torch
from cases import SKETCHES
from torch import Tensor, nn

import rad
from rad.functional.elementwise import elementwise_grad_variance
from rad.functional.recurrent import rnn_weight_grad_variance
from rad.functional.scaling import normalised
from rad.nn import Conv2d, Linear
from rad.sketches import Sketch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("exponent", [-90, -1, 0, 100])
def test_normalising_is_exact(dtype: torch.dtype, exponent: int) -> None:
    x = (torch.randn(50) * 2.0**exponent).to(dtype)
    scaled, scale = normalised(x)
    assert torch.equal(scaled * scale, x)
    assert 0.5 <= scaled.abs().max() < 1
    assert scaled.dtype == dtype


def test_what_cannot_be_normalised_is_left_alone() -> None:
    for x in (torch.zeros(3), torch.zeros(0), torch.tensor([1e-7]).half()):
        assert normalised(x)[1] == 1
    assert normalised(torch.tensor([1.0, torch.inf]))[1] == 1


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
@pytest.mark.parametrize("exponent", [-73, 73])
def test_variances_grow_with_the_square_of_the_gradient(sketch: Sketch, exponent: int) -> None:
    torch.manual_seed(0)
    linear, conv = Linear(9, 4), Conv2d(2, 3, 3)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = [
        (linear, torch.randn(6, 9), torch.randn(6, 4)),
        (conv, torch.randn(2, 2, 5, 5), torch.randn(2, 3, 3, 3)),
    ]
    for layer, x, grad in calls:
        usual = layer.weight_grad_variance(x, grad, sketch)
        far = layer.weight_grad_variance(x, grad * 2.0**exponent, sketch)
        assert far.item() == pytest.approx(usual.item() * 4.0**exponent, rel=1e-6)
        assert usual > 0 or isinstance(sketch, rad.Identity)
    x, delta = torch.randn(3, 6, 9), torch.randn(3, 6, 4)
    usual = rnn_weight_grad_variance(x, delta, sketch)
    far = rnn_weight_grad_variance(x, delta * 2.0**exponent, sketch)
    assert far.item() == pytest.approx(usual.item() * 4.0**exponent, rel=1e-6)


@pytest.mark.parametrize("exponent", [-73, 73])
def test_those_of_activation_functions_too(exponent: int) -> None:
    x, grad, sketch = torch.randn(5, 8), torch.randn(5, 8), rad.StochasticRounding(2)
    usual = elementwise_grad_variance(x, grad, torch.tanh, sketch)
    far = elementwise_grad_variance(x, grad * 2.0**exponent, torch.tanh, sketch)
    assert far.item() == pytest.approx(usual.item() * 4.0**exponent, rel=1e-6)
