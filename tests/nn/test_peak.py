"""No layer's peak lies above torch's.

The input is made within the step and held by nobody else, as between the layers of a network:
torch's layers hold it until backward, a sketch stands in for it here. What is drawn, read or
multiplied at a time comes on top, and must fit in what the sketch saves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from cases import SKETCHES as EVERY_SKETCH
from torch import Tensor, nn

import rad
from rad.functional.recurrent import CHUNK_BYTES
from rad.memory import peak_bytes

SLACK = 1 << 16
"""Bytes, for keys, tables and other small constants."""

DERIVATIVES = 1 << 19
"""Bytes of a piece of float32 derivatives."""

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
EVERY_WEIGHT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(160, 120), (6000, 160)),
    "Conv2d": (nn.Conv2d(16, 32, 3, padding=1), (36, 16, 24, 24)),
}
TYPES = [torch.float32, torch.bfloat16]
RECURRENT = {
    "relu": nn.RNN(40, 64, nonlinearity="relu"),
    "tanh": nn.RNN(40, 64),
}
Order = Literal["contiguous", "channels_last", "transposed"]
ORDERS: dict[Order, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
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


def peak(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, order: Order) -> int:
    """Of forward and backward, for an input that is made within and an output nobody keeps."""
    x = ORDERS[order](torch.randn(shape, dtype=dtype)).requires_grad_()
    with torch.no_grad():
        weights = torch.randn_like(_output(layer(x)))
    wanted = [x, *layer.parameters()]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad((_output(layer(x.clone())) * weights).sum(), wanted)

    step()
    return peak_bytes(step)


torchs_peak = functools.cache(peak)
"""Of a layer of torch: the same whatever its sketching double keeps."""


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def check(
    layer: nn.Module,
    converted: nn.Module,
    shape: tuple[int, ...],
    slack: int = SLACK,
    *,
    dtype: torch.dtype = torch.float32,
    order: Order = "contiguous",
) -> None:
    theirs = torchs_peak(layer.to(dtype), shape, dtype, order)
    ours = peak(converted.to(dtype), shape, dtype, order)
    layer.to(torch.float32)
    assert ours <= theirs + slack


@pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
@pytest.mark.parametrize(("layer", "shape"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_layers_with_weights(
    layer: nn.Module, shape: tuple[int, ...], sketch: rad.sketches.Sketch
) -> None:
    check(layer, rad.convert(layer, sketch), shape)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sketch", EVERY_SKETCH.values(), ids=EVERY_SKETCH.keys())
@pytest.mark.parametrize(("layer", "shape"), EVERY_WEIGHT.values(), ids=EVERY_WEIGHT.keys())
def test_every_sketch_in_either_type(
    layer: nn.Module, shape: tuple[int, ...], sketch: rad.sketches.Sketch, dtype: torch.dtype
) -> None:
    check(layer, rad.convert(layer, sketch), shape, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", ["same_sample_distinct_most", "stochastic_rounding_blocks"])
def test_pointwise_convolution_in_either_type(name: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(16, 32, 1)
    check(layer, rad.convert(layer, EVERY_SKETCH[name]), IMAGE, dtype=dtype)


@pytest.mark.parametrize("kind", [rad.SameSample, rad.DifferentSample])
@pytest.mark.parametrize("keep", [0.1, 0.2, 0.3])
def test_the_peak_is_the_same_with_every_draw(keep: float, kind: type[rad.Sketch]) -> None:
    """Of an input half of which is zero: what is drawn of that differs from call to call."""
    layer = rad.convert(nn.Conv2d(8, 16, 3), kind(keep))  # type: ignore[call-arg]
    x = torch.randn(4, 8, 20, 20)
    x[..., ::2] = 0
    weights = list(layer.parameters())
    peaks = {peak_bytes(lambda: torch.autograd.grad(layer(x).sum(), weights)) for _ in range(10)}
    assert len(peaks) == 1


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


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sketch", ROUNDINGS.values(), ids=ROUNDINGS.keys())
@pytest.mark.parametrize("kind", [nn.GELU, nn.SiLU, nn.Tanh])
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "transposed"])
def test_smooth_layers_in_any_order_and_type(
    kind: type[nn.Module], sketch: rad.sketches.Sketch, order: Order, dtype: torch.dtype
) -> None:
    shape = (8, 64, 32, 32)
    slack = DERIVATIVES if dtype == torch.float32 else SLACK
    check(kind(), rad.convert(kind(), sketch), shape, slack, dtype=dtype, order=order)
