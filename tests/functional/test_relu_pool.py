"""ReLU and pooling in one pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rad
from rad import backends
from rad.functional import relu_avg_pool2d
from rad.functional.relu_pool import _pooled_and_bits
from rad.memory import peak_bytes, saved_bytes

SHAPES = [(2, 3, 4, 6), (3, 5, 7), (1, 1, 2, 2), (0, 3, 4, 4), (2, 5, 70, 71)]


@pytest.mark.parametrize("form", ["loops", "torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equals_torch(
    form: str, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if form == "torch":
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    x = torch.randn(shape).to(dtype)
    if x.numel() > 4:
        x.view(-1)[:4] = torch.tensor([0.0, -0.0, float("nan"), float("-inf")])
    x.requires_grad_()
    expected, actual = F.avg_pool2d(F.relu(x), 2), relu_avg_pool2d(x * 1)
    assert actual.dtype == dtype
    assert torch.equal(actual.nan_to_num(7), expected.nan_to_num(7))
    grad_output = torch.randn_like(expected)
    grad_output[..., -1, -1] = torch.inf
    for grad in (grad_output, torch.ones((), dtype=dtype).expand_as(expected)):
        (want,) = torch.autograd.grad(expected, x, grad, retain_graph=True)
        (got,) = torch.autograd.grad(actual, x, grad, retain_graph=True)
        assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 9, 70)], ids=str)
def test_both_forms_keep_the_same_bits(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape)
    x.view(-1)[:5] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf])
    in_loops = _pooled_and_bits(x)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    for ours, theirs in zip(in_loops, _pooled_and_bits(x), strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


@pytest.mark.parametrize("shape", [(3, 1, 5, 6), (2, 4, 8, 8)])
def test_four_bits_an_output(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    outputs = shape[0] * shape[1] * (shape[2] // 2) * (shape[3] // 2)
    assert saved_bytes(lambda: relu_avg_pool2d(x)) == -(-outputs // 2)


def test_the_output_of_the_relu_never_stands_in_memory() -> None:
    x = torch.randn(4, 16, 64, 64, requires_grad=True)
    pooled = x.numel() * 4 // 4
    assert peak_bytes(lambda: relu_avg_pool2d(x)) < 3.5 * pooled
    apart = rad.convert(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), rad.Identity())
    assert peak_bytes(lambda: apart(x)) > 4 * pooled


def test_the_layer_is_known_to_convert_report_and_audit() -> None:
    layers = [nn.Conv2d(2, 3, 3, padding=1), rad.nn.ReLUAvgPool2d(), nn.Conv2d(3, 4, 3), nn.ReLU()]
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(5, 2, 8, 8)
    model = rad.convert(plain, rad.DifferentSample(0.3))
    assert torch.equal(model(x), plain(x))
    assert "4 bits per output" in str(rad.report(model))
    audit = rad.audit(model, lambda: model(x).square().mean())
    assert not audit.unexpected
    assert audit.saved["1"] == audit.predicted["1"] == 5 * 3 * 16 // 2


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 8), (1, 2, 3, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 x 2"):
        relu_avg_pool2d(torch.ones(shape))
