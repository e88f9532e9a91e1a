import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
    draws,
)

import rad
from rad.draws.casts import cast
from rad.draws.reference import READ
from rad.dtypes import accumulation_dtype
from rad.functional import elementwise, elementwise_grad_variance
from rad.functional.elementwise import times_derivative
from rad.memory import saved_bytes
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    RotatedRounding,
    SampledRounding,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

LAYERS = [
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(beta=2, threshold=5),
    nn.ELU(alpha=0.7),
    nn.ELU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.SELU(),
    nn.SELU(inplace=True),
    nn.CELU(alpha=0.7),
    nn.Hardswish(),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Tanhshrink(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.5, 0.8),
    nn.Hardtanh(inplace=True),
    nn.ReLU6(),
    nn.Softshrink(0.3),
    nn.Hardshrink(0.3),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
ROUNDINGS = [StochasticRounding(3), DitheredRounding(2)]
every_rounding = pytest.mark.parametrize("sketch", ROUNDINGS, ids=str)


def derivative(layer: nn.Module, x: Tensor) -> Tensor:
    layer = copy.deepcopy(layer)
    if hasattr(layer, "inplace"):
        layer.inplace = False  # torch reads the derivative from the result otherwise
    x = x.detach().requires_grad_()
    return torch.autograd.grad(layer(x * 1).sum(), x)[0]


@every_layer
@every_rounding
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5, 6), (2, 3, 7), (9,), (0, 4), ()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_forward_is_torchs_and_the_gradient_reads_the_sketch(
    layer: nn.Module, sketch: Sketch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    converted = rad.convert(layer, sketch, seed=3)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    output = converted(x * 1)
    assert torch.equal(output, layer(x * 1))
    grad_output = torch.randn_like(output)
    (got,) = torch.autograd.grad(output, x, grad_output)
    key = fold_in(converted.key, 0)
    exact = derivative(layer, x)
    rows = exact.flatten(2) if x.dim() > 3 else exact.reshape(-1, shape[-1] if shape else 1)
    wide = accumulation_dtype(dtype)
    sketch = converted.of_derivative
    read = sketch.decompress(sketch.compress(rows, key), rows.shape, wide, key)
    product = grad_output.to(wide).view(rows.shape) * read
    assert torch.equal(got, cast(product, dtype, key, READ).view(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_gradients_are_unbiased(dtype: torch.dtype) -> None:
    """Of the product of two short numbers, which neither holds: the nearest would be a bias."""
    torch.manual_seed(0)
    sketch, exact = DitheredRounding(8), torch.rand(2, 5).to(dtype)
    grad_output = torch.randn(2, 5).to(dtype)
    truth = grad_output.double() * exact.double()

    def gradient(key: Tensor) -> Tensor:
        return times_derivative(sketch, grad_output, sketch.compress(exact, key), key)

    samples = draws(gradient, 20_000)
    assert samples.dtype == dtype
    check_unbiased(samples, truth)


@every_layer
def test_identity_and_sampling_leave_torchs_gradient(layer: nn.Module) -> None:
    x, grad_output = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    (want,) = torch.autograd.grad(layer(x * 1), x, grad_output)
    for sketch in (Identity(), DifferentSample(0.3)):
        converted = rad.convert(layer, sketch)
        assert torch.equal(torch.autograd.grad(converted(x * 1), x, grad_output)[0], want)
        assert converted.keeps == "what torch keeps"
    assert rad.convert(layer, StochasticRounding(3)).keeps.endswith("of its derivative")
    torch.testing.assert_close(
        torch.autograd.grad(
            elementwise(x, lambda x: layer(x * 1), sketch=Identity(), key=make_key(0)),
            x,
            grad_output,
        )[0],
        want,
    )


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Softplus(), nn.LeakyReLU(0.2)], ids=str)
@every_rounding
def test_unbiased_with_the_stated_variance(layer: nn.Module, sketch: Sketch) -> None:
    torch.manual_seed(0)
    x, grad_output = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    exact = derivative(layer, x)

    def estimate(key: Tensor) -> Tensor:
        kept = sketch.compress(exact, key)
        return grad_output * sketch.decompress(kept, exact.shape, exact.dtype, key)

    variance = elementwise_grad_variance(x, grad_output, lambda x: layer(x * 1), sketch)
    if isinstance(layer, nn.LeakyReLU) and isinstance(sketch, StochasticRounding):
        assert variance < 1e-12  # both values are levels
        return
    samples = draws(estimate, 10_000)
    check_unbiased(samples, grad_output * exact)
    check_biased_is_caught(samples, grad_output * exact)
    check_one_biased_is_caught(samples, grad_output * exact)
    check_mean_square(samples, grad_output * exact, variance.item())


def test_gradients_through_two_layers_are_unbiased() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)
    ).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])

    def gradient(model: nn.Module) -> Tensor:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())[:2])
        return torch.cat([g.flatten() for g in grads])

    converted = rad.convert(model, StochasticRounding(3), seed=1)
    samples = torch.stack([gradient(converted) for _ in range(300)])
    check_unbiased(samples, gradient(model))
    check_biased_is_caught(samples, gradient(model))


def test_bytes() -> None:
    layer = rad.convert(nn.GELU(), StochasticRounding(2))
    x = torch.randn(10, 64, requires_grad=True)
    assert saved_bytes(lambda: layer(x)) == layer.sketch.nbytes(x.shape, x.dtype) + 8
    assert saved_bytes(lambda: layer(x.detach())) == 0
    assert saved_bytes(lambda: layer.eval()(x)) == x.nbytes
    assert "sketch" in repr(layer)


TWO_VALUED = [layer for layer in LAYERS if rad.convert(layer, ROUNDINGS[0]).is_two_valued]


@pytest.mark.parametrize("layer", TWO_VALUED, ids=str)
@pytest.mark.parametrize("sketch", [DitheredRounding(2), StochasticRounding(8, 50)], ids=str)
def test_two_values_are_exact_in_a_bit_with_any_rounding(layer: nn.Module, sketch: Sketch) -> None:
    converted, x = rad.convert(layer, sketch), torch.randn(10, 64, requires_grad=True)
    grad_output = torch.randn(10, 64)
    (got,) = torch.autograd.grad(converted(x * 1), x, grad_output)
    torch.testing.assert_close(got, grad_output * derivative(layer, x))
    assert got.count_nonzero() > 0
    grids = 10 if sketch.block is None else 13
    assert saved_bytes(lambda: converted(x * 1)) == 640 // 8 + grids * 8 + 8
    assert "bits=1" in converted.keeps


def test_which_layers_have_two_values() -> None:
    names = {type(layer).__name__ for layer in TWO_VALUED}
    shrinking = {"Softshrink", "Hardshrink"}
    assert names == {"LeakyReLU", "Hardsigmoid", "Hardtanh", "ReLU6"} | shrinking


def test_a_second_derivative_complex_numbers_and_unknown_variances_are_refused() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    output = elementwise(x, torch.tanh, sketch=StochasticRounding(8), key=make_key(0))
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
    with pytest.raises(TypeError, match="complex"):
        elementwise(x.to(torch.complex64), torch.tanh, sketch=Identity(), key=make_key(0))
    with pytest.raises(TypeError, match="closed-form"):
        elementwise_grad_variance(x, x, torch.tanh, DifferentSample(0.3))


@pytest.mark.parametrize("sketch", [SampledRounding(0.5, 2), RotatedRounding(2)], ids=str)
def test_errors_of_more_than_single_numbers_have_no_closed_form(sketch: Sketch) -> None:
    x = torch.rand(3, 4)
    with pytest.raises(TypeError, match="closed-form"):
        elementwise_grad_variance(x, x, torch.tanh, sketch)
    assert elementwise_grad_variance(x, x, torch.tanh, Identity()) == 0


def test_report_names_what_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    assert "of its derivative" in str(rad.report(rad.convert(model, DitheredRounding(2))))
