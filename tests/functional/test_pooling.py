from typing import Any

import pytest
import torch
from torch import nn

import rad
from rad import backends, functional
from rad.memory import saved_bytes

AVERAGE = [
    (nn.AvgPool2d(2), (3, 4, 8, 6)),
    (nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 9, 7)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 8, 7)),
    (nn.AvgPool2d(2, divisor_override=3), (2, 3, 8, 7)),
    (nn.AvgPool2d(2), (4, 8, 6)),
    (nn.AvgPool1d(3, 2, 1), (2, 3, 11)),
    (nn.AvgPool1d(2, ceil_mode=True), (3, 11)),
    (nn.AvgPool3d(2, padding=1), (2, 3, 5, 4, 6)),
    (nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 8, 7)),
    (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 8, 7)),
    (nn.AdaptiveAvgPool2d(1), (3, 8, 7)),
]
MAXIMUM = [
    (nn.MaxPool2d(2), (3, 4, 8, 6), 2),
    (nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 9, 7), 4),
    (nn.MaxPool2d(3, 1, 1, dilation=(2, 1)), (2, 3, 9, 7), 4),
    (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 3, 8, 8), 4),
    (nn.MaxPool2d(2), (4, 8, 6), 2),
    (nn.MaxPool1d(2), (2, 3, 11), 1),
    (nn.MaxPool1d(5, 2, 2), (3, 11), 4),
    (nn.MaxPool3d((2, 3, 2), padding=1), (2, 3, 5, 7, 6), 4),
    (nn.MaxPool2d(20), (2, 3, 40, 41), 16),
    (nn.MaxPool2d(3, 1, 1), (4, 7, 40, 41), 4),
    (nn.MaxPool1d(2), (5, 8001), 1),
    (nn.MaxPool3d(2, 1), (2, 2, 9, 40, 41), 4),
]


def check_equal(layer: nn.Module, converted: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    expected, actual = layer(x), converted(x)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    (want,) = torch.autograd.grad(expected, x, grad_output)
    (got,) = torch.autograd.grad(actual, x, grad_output)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("layer", "shape"), AVERAGE, ids=str)
def test_average_pooling_keeps_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    converted = rad.convert(layer, rad.Identity())
    check_equal(layer, converted, shape)
    x = torch.randn(shape, requires_grad=True)
    assert saved_bytes(lambda: converted(x)) == 0


@pytest.mark.parametrize(("layer", "shape", "bits"), MAXIMUM, ids=str)
def test_max_pooling_keeps_offsets(layer: nn.Module, shape: tuple[int, ...], bits: int) -> None:
    converted = rad.convert(layer, rad.Identity())
    check_equal(layer, converted, shape)
    x = torch.randn(shape, requires_grad=True)
    assert saved_bytes(lambda: converted(x)) == -(-converted(x).numel() * bits // 8)


def test_max_pooling_of_ties_takes_torchs_choice() -> None:
    layer = nn.MaxPool2d(2, 1)
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    outputs: list[Any] = [m(x).sum() for m in (layer, rad.convert(layer, rad.Identity()))]
    want, got = (torch.autograd.grad(output, x)[0] for output in outputs)
    assert torch.equal(got, want)


def test_indices_can_still_be_asked_for() -> None:
    layer = rad.convert(nn.MaxPool2d(2, return_indices=True), rad.Identity())
    values, indices = layer(torch.randn(1, 1, 4, 4))
    assert values.shape == indices.shape


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [(nn.MaxPool1d, 70_000), (nn.MaxPool1d, 65_537), (nn.MaxPool2d, 300), (nn.MaxPool3d, 41)],
)
def test_windows_beyond_16_bits(kind: type[nn.Module], kernel: int) -> None:
    axes = int(kind.__name__[-2])
    ours, theirs = rad.convert(kind(kernel), rad.Identity()), kind(kernel)
    x = torch.randn(1, 2, *(kernel + 3,) * axes, requires_grad=True)
    grad_output = torch.randn(1, 2, *(1,) * axes)
    want, got = (torch.autograd.grad(layer(x), x, grad_output)[0] for layer in (theirs, ours))
    assert torch.equal(got, want)
    assert ours.keeps == "32 bits per output"
    assert rad.memory.saved_bytes(lambda: ours(x)) == 2 * 4


def test_windows_beyond_16_bits_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional.pooling, "PIECE", 8)
    theirs = nn.MaxPool2d(260, 1)
    ours = rad.convert(theirs, rad.Identity())
    check_equal(theirs, ours, (2, 7, 261, 263))


def test_an_empty_batch() -> None:
    x = torch.randn(0, 3, 8, 8, requires_grad=True)
    functional.max_pool(x, 2, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("form", ["loops", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 3, 7, 9), (3, 5, 4), (1, 1, 2, 3)], ids=str)
def test_halves_are_torchs_to_the_bit(
    shape: tuple[int, ...], dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "torch":
        monkeypatch.setattr(backends, "in_loops", lambda _: False)
    x = torch.randn(shape, dtype=dtype)
    x.view(-1)[:2] = torch.tensor([float("nan"), float("inf")])
    x.requires_grad_()
    found, expected = functional.avg_pool(x, 2, 2), nn.functional.avg_pool2d(x, 2)
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    grad = torch.randn(found.shape, dtype=dtype)
    grad.view(-1)[0] = float("inf")
    (got,), (want,) = (torch.autograd.grad(y, x, grad) for y in (found, expected))
    assert torch.equal(got, want)
