"""The ReLU kernels against torch's operators. Run by test_kernels.py."""

import pytest
import torch
from kernels.interpreting import DEVICE, integers_that_count, kernels_on  # noqa: F401

from rad.functional import relu
from rad.kernels import relu as kernel
from rad.sketches.bits import pack

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1,), (5, 7), (3, 2, 5, 3), (0, 3), (8,), (2055,), ()]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    if x.numel() > 5:
        special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf]
        x.view(-1)[:5] = torch.tensor(special, dtype=dtype)
    return x.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_bits_and_gradient_are_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad_output = numbers(shape, dtype), numbers(shape, dtype) + 1
    output, bits = kernel.relu(x)
    assert torch.equal(output.nan_to_num(7), x.relu().nan_to_num(7))
    assert torch.equal(bits, pack(x.relu().bool()))
    with kernels_on(False):
        x.requires_grad_()
        (want,) = torch.autograd.grad(relu(x), x, grad_output)
    got = kernel.relu_backward(bits, grad_output)
    assert got.dtype == dtype
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))
    if x.numel() > 5:  # the control
        assert not torch.equal(kernel.relu_backward(~bits, grad_output), want)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_operator_takes_them(inplace: bool) -> None:
    x = numbers((5, 13), torch.float32).nan_to_num(0).requires_grad_()
    grad_output = torch.randn(13, 5, device=DEVICE).t()
    results = []
    for on in (False, True):
        with kernels_on(on):
            given = x * 1
            output = relu(given, inplace=inplace)
            assert (output.data_ptr() == given.data_ptr()) == inplace
            results.append((output, *torch.autograd.grad(output, x, grad_output)))
    for want, got in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_strided_inputs_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "relu", None)
    x = numbers((5, 7), torch.float32).t().requires_grad_()
    with kernels_on(True):
        (got,) = torch.autograd.grad(relu(x), x, torch.ones_like(x))
    assert torch.equal(got, torch.where(x <= 0, 0, 1.0))
