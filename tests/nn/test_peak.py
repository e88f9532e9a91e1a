"""No layer's peak lies above torch's.

The input is made within the step and held by nobody else, as between the layers of a network:
torch's layers hold it until backward, a sketch stands in for it here. What is drawn, read or
multiplied at a time comes on top, and must fit in what the sketch saves.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rad
from rad.functional.recurrent import CHUNK_BYTES
from rad.memory import peak_bytes

SLACK = 1 << 16
"""Bytes, for keys, tables and other small constants."""

IMAGE = (12, 16, 40, 40)
FLAT = (600, 1000)

WEIGHTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(784, 300), (1000, 784)),
    "Conv1d": (nn.Conv1d(16, 32, 5, padding=2), (12, 16, 1500)),
    "Conv2d": (nn.Conv2d(16, 32, 3, padding=1), IMAGE),
    "Conv2d_stride": (nn.Conv2d(16, 32, 3, stride=2), IMAGE),
    "Conv2d_pointwise": (nn.Conv2d(16, 32, 1), IMAGE),
    "Conv2d_reflect": (nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), IMAGE),
    "Conv2d_large": (nn.Conv2d(3, 8, 5, padding=2), (4, 3, 96, 96)),
    "Conv3d": (nn.Conv3d(4, 8, 3, padding=1), (8, 4, 12, 20, 20)),
}
RECURRENT = {
    "relu": nn.RNN(40, 64, nonlinearity="relu"),
    "tanh": nn.RNN(40, 64),
}
SKETCHES = {
    "identity": rad.Identity(),
    "same_sample": rad.SameSample(0.1),
    "different_sample": rad.DifferentSample(0.1),
    "project": rad.Project(0.1),
    "stochastic_rounding": rad.StochasticRounding(4),
    "rotated_rounding": rad.RotatedRounding(4),
    "importance_sampling": rad.ImportanceSampling(0.1),
}
EXACT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "ReLU": (nn.ReLU(), FLAT),
    "AvgPool1d": (nn.AvgPool1d(2), (20, 20, 1000)),
    "AvgPool2d": (nn.AvgPool2d(2), IMAGE),
    "AvgPool3d": (nn.AvgPool3d(2), (8, 8, 20, 20, 20)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(5), IMAGE),
    "MaxPool1d": (nn.MaxPool1d(2), (20, 20, 1000)),
    "MaxPool2d": (nn.MaxPool2d(2), (4, 16, 96, 96)),
    "MaxPool2d_overlapping": (nn.MaxPool2d(3, 2, 1), (4, 16, 96, 96)),
    "MaxPool3d": (nn.MaxPool3d(2), (8, 8, 20, 20, 20)),
    "Dropout": (nn.Dropout(), FLAT),
}
SMOOTH = [nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU]
ROUNDINGS = {
    "stochastic_rounding": rad.StochasticRounding(4),
    "blocks": rad.DitheredRounding(3, block=1024, zero_code=True),
}


def peak(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Of forward and backward, for an input that is made within and an output nobody keeps."""
    x = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        weights = torch.randn_like(_output(layer(x)))
    wanted = [x, *layer.parameters()]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad((_output(layer(x.clone())) * weights).sum(), wanted)

    step()
    return peak_bytes(step)


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def check(
    layer: nn.Module, converted: nn.Module, shape: tuple[int, ...], slack: int = SLACK
) -> None:
    assert peak(converted, shape) <= peak(layer, shape) + slack


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
@pytest.mark.parametrize(("layer", "shape"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_layers_with_weights(
    layer: nn.Module, shape: tuple[int, ...], sketch: rad.sketches.Sketch
) -> None:
    check(layer, rad.convert(layer, sketch), shape)


@pytest.mark.parametrize("name", ["identity", "different_sample", "stochastic_rounding"])
@pytest.mark.parametrize("layer", RECURRENT.values(), ids=RECURRENT.keys())
def test_recurrent_layers_but_for_two_chunks_of_states(layer: nn.Module, name: str) -> None:
    check(layer, rad.convert(layer, SKETCHES[name]), (40, 150, 40), 2 * CHUNK_BYTES)


@pytest.mark.parametrize(("layer", "shape"), EXACT.values(), ids=EXACT.keys())
def test_exact_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    check(layer, rad.convert(layer, rad.Identity()), shape)


def test_relu_and_pooling_in_one() -> None:
    check(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), rad.nn.ReLUAvgPool2d(), IMAGE)


@pytest.mark.parametrize("sketch", ROUNDINGS.values(), ids=ROUNDINGS.keys())
@pytest.mark.parametrize("kind", SMOOTH)
def test_smooth_layers(kind: type[nn.Module], sketch: rad.sketches.Sketch) -> None:
    check(kind(), rad.convert(kind(), sketch), FLAT)
