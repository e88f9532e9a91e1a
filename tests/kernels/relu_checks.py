"""The ReLU kernels against torch's operators. Run by test_kernels.py."""

import pytest
import torch
from kernels.interpreting import DEVICE, integers_that_count, kernels_on  # noqa: F401

from rad.functional import relu, relu_avg_pool2d
from rad.kernels import relu as kernel
from rad.packing.bits import pack, pack_integers

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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 6), (3, 5, 7), (1, 1, 2, 2), (0, 3, 4, 4), (2, 40, 9, 18)]
)
def test_relu_and_pooling(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, results = numbers(shape, dtype), []
    pooled = (*shape[:-2], shape[-2] // 2, shape[-1] // 2)
    grad_output = torch.randn(pooled[::-1]).to(dtype).to(DEVICE).permute(*reversed(range(x.dim())))
    for on in (False, True):
        with kernels_on(on):
            given = x.clone().requires_grad_()
            output = relu_avg_pool2d(given)
            assert output.dtype == dtype
            results.append((output, *torch.autograd.grad(output, given, grad_output)))
    (want, want_grad), (got, got_grad) = results
    close = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 2**-7)
    torch.testing.assert_close(got, want, rtol=close, atol=close, equal_nan=True)
    if dtype == torch.bfloat16 and DEVICE == "cpu":  # the interpreter cuts off what torch rounds
        torch.testing.assert_close(got_grad, want_grad, rtol=2**-7, atol=0)
    else:
        assert torch.equal(got_grad, want_grad)
    if x.numel():  # the control
        _, bits = kernel.relu_avg_pool2d(x)
        other = torch.zeros_like(x)
        kernel.relu_avg_pool2d_backward(~bits, grad_output, other)
        assert not torch.equal(other, want_grad)


def test_the_bits_of_relu_and_pooling_are_those_of_the_operator() -> None:
    x = numbers((3, 3, 5, 7), torch.float32)
    active = (x.relu() != 0)[..., :4, :6]
    corners = sum(
        active[..., row::2, column::2].int() << 2 * row + column
        for row in range(2)
        for column in range(2)
    )
    assert isinstance(corners, torch.Tensor)
    assert torch.equal(kernel.relu_avg_pool2d(x)[1], pack_integers(corners, 4))
