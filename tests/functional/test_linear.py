import pytest
import torch
import torch.nn.functional as F
from cases import LOSSY, SKETCHES
from torch import Tensor
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
    draws,
)

from rad.functional import linear, linear_weight_grad_variance
from rad.memory import saved_bytes
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch, make_key
from rad.sketches.blockwise import Rounding

every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
lossy_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
case = pytest.mark.parametrize(
    ("shape", "out_features", "bias", "dtype"),
    [
        ((5, 7), 3, True, torch.float64),
        ((5, 7), 3, False, torch.float64),
        ((7,), 3, True, torch.float64),
        ((2, 3, 11), 4, True, torch.float64),
        ((2, 3, 11), 4, False, torch.float32),
        ((6, 1), 2, True, torch.float64),
        ((700, 130), 9, True, torch.float64),
        ((33, 20), 9, True, torch.bfloat16),
        ((33, 20), 9, True, torch.float16),
    ],
    ids=str,
)


def leaves(shape: tuple[int, ...], out: int, bias: bool, dtype: torch.dtype) -> list[Tensor | None]:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(out, shape[-1], dtype=dtype)
    return [
        t.requires_grad_() if t is not None else None
        for t in (x, weight, torch.randn(out, dtype=dtype) if bias else None)
    ]


def gradients(output: Tensor, grad_output: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(output, [t for t in inputs if t is not None], grad_output))


@every_sketch
@case
def test_forward_and_gradients(
    sketch: Sketch, shape: tuple[int, ...], out_features: int, bias: bool, dtype: torch.dtype
) -> None:
    inputs = leaves(shape, out_features, bias, dtype)
    x, key = inputs[0], make_key(4)
    assert x is not None
    exact, output = F.linear(*inputs), linear(*inputs, sketch=sketch, key=key)  # type: ignore[arg-type]
    assert torch.equal(output, exact)
    grad_output = torch.randn_like(output)
    expected = gradients(exact, grad_output, inputs)
    actual = gradients(output, grad_output, inputs)
    if len(shape) == 2:
        assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[0], expected[0])
    flat = x.detach().reshape(-1, shape[-1])
    x_hat = sketch.decompress(sketch.compress(flat, key), flat.shape, dtype, key)
    naive = grad_output.reshape(-1, out_features).t().double() @ x_hat.double()
    rounding = {
        torch.float64: 1e-13,
        torch.float32: 1e-6,
        torch.bfloat16: 2**-7,
        torch.float16: 2**-10,
    }[dtype]
    assert (actual[1] - naive).norm() <= rounding * naive.norm()
    assert actual[1].dtype == dtype
    if bias:
        torch.testing.assert_close(actual[2], expected[2])


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_passes_with_identity_only(bias: bool) -> None:
    x, weight, b = leaves((5, 7), 3, bias, torch.float64)

    def check(sketch: Sketch) -> bool:
        def function(x: Tensor, weight: Tensor) -> Tensor:
            return linear(x, weight, b, sketch=sketch, key=make_key(0))

        return torch.autograd.gradcheck(function, (x, weight), raise_exception=False)

    assert check(Identity())
    assert not any(check(sketch) for sketch in LOSSY.values())


@every_sketch
def test_predicted_bytes_are_measured(sketch: Sketch) -> None:
    x, weight = torch.randn(6, 20), torch.nn.Parameter(torch.randn(3, 20))
    kept = saved_bytes(lambda: linear(x, weight, sketch=sketch, key=make_key(0)))
    assert kept == sketch.nbytes(x.shape, x.dtype) + 8


@every_sketch
def test_two_backwards_agree(sketch: Sketch) -> None:
    inputs = leaves((5, 7), 3, True, torch.float64)
    output = linear(*inputs, sketch=sketch, key=make_key(0))  # type: ignore[arg-type]
    output.sum().backward(retain_graph=True)
    weight = inputs[1]
    assert weight is not None
    assert weight.grad is not None
    first = weight.grad.clone()
    output.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * first)


def test_what_needs_no_gradient_keeps_nothing() -> None:
    x, weight = torch.randn(6, 20, requires_grad=True), torch.randn(3, 20)
    frozen = saved_bytes(lambda: linear(x, weight, sketch=Identity(), key=make_key(0)))
    assert frozen == weight.nbytes + 8


def test_modifying_a_kept_input_is_noticed() -> None:
    x, weight = torch.randn(6, 20), torch.randn(3, 20, requires_grad=True)
    output = linear(x, weight, sketch=Identity(), key=make_key(0))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@every_sketch
def test_autocast_keeps_the_sketch_in_the_lower_precision(sketch: Sketch) -> None:
    x, weight = torch.randn(6, 20, requires_grad=True), torch.nn.Parameter(torch.randn(3, 20))

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(x, weight, sketch=sketch, key=make_key(0))

    output = forward()
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert saved_bytes(forward) == sketch.nbytes(x.shape, torch.bfloat16) + 8


@lossy_sketch
def test_weight_gradient_is_unbiased_with_the_stated_variance(sketch: Sketch) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 7, dtype=torch.float64)
    grad_output = torch.randn(3, 4, dtype=torch.float64)
    samples = draws(
        lambda k: sketch.contract(grad_output, sketch.compress(x, k), (3, 7), k), 30_000
    )
    exact = grad_output.t() @ x
    check_unbiased(samples, exact)
    check_biased_is_caught(samples, exact)
    if isinstance(sketch, Rounding):
        check_one_biased_is_caught(samples, exact)
    check_mean_square(samples, exact, linear_weight_grad_variance(x, grad_output, sketch).item())


@pytest.mark.parametrize("sketch", [SameSample(0.1), Project(0.1), DifferentSample(0.1)], ids=str)
def test_low_precision_has_no_common_scale(sketch: Sketch) -> None:
    x, grad_output = torch.randn(50, 784).bfloat16(), torch.randn(50, 20).bfloat16()
    ratios = []
    for i in range(40):
        key = make_key(i)
        kept = sketch.compress(x, key)
        low = sketch.contract(grad_output, kept, (50, 784), key).double()
        x_hat = sketch.decompress(kept, x.shape, torch.float64, key)
        exact = grad_output.double().t() @ x_hat
        ratios.append((low * exact).sum() / exact.square().sum())
    assert abs(torch.stack(ratios).mean() - 1) < 2e-4


def test_no_input_features() -> None:
    x, weight = torch.randn(2, 0), torch.randn(3, 0, requires_grad=True)
    assert linear(x, weight, sketch=Identity(), key=make_key(0)).shape == (2, 3)


@every_sketch
def test_an_empty_batch(sketch: Sketch) -> None:
    x, weight = torch.randn(0, 7), torch.randn(3, 7, requires_grad=True)
    linear(x, weight, sketch=sketch, key=make_key(0)).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_complex_numbers_are_refused() -> None:
    x = torch.ones(2, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="view_as_real"):
        linear(x, x, sketch=Identity(), key=make_key(0))


def test_no_closed_form_is_said() -> None:
    class Other(Identity.__mro__[1]):  # type: ignore[misc]
        compress = decompress = nbytes = variance = None

    with pytest.raises(TypeError, match="Other"):
        linear_weight_grad_variance(torch.ones(2, 3), torch.ones(2, 2), Other())
