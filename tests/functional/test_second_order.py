"""Second derivatives: right, or refused; never silently wrong."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import LOSSY, SKETCHES
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad import functional
from rad.sketches import Identity, Sketch, StochasticRounding, make_key

every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
lossy_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
KEY = make_key(3)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def linear_case() -> tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    return (
        [leaf(5, 7), leaf(4, 7), leaf(4)],
        lambda x, w, b, sketch: functional.linear(x, w, b, sketch=sketch, key=KEY),
        F.linear,
    )


def conv_case(
    mode: str = "zeros",
) -> tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    options = {"stride": 1, "padding": 1, "groups": 2}

    def sketched(x: Tensor, w: Tensor, b: Tensor, sketch: Sketch) -> Tensor:
        return functional.conv(x, w, b, **options, padding_mode=mode, sketch=sketch, key=KEY)  # type: ignore[arg-type]

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        padded = x if mode == "zeros" else F.pad(x, (1, 1, 1, 1), mode)
        return F.conv2d(padded, w, b, 1, 1 if mode == "zeros" else 0, 1, 2)

    return [leaf(6, 4, 5, 3), leaf(6, 2, 3, 3), leaf(6)], sketched, plain


def transposed_case() -> tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}

    def sketched(x: Tensor, w: Tensor, b: Tensor, sketch: Sketch) -> Tensor:
        return functional.conv_transpose(x, w, b, **options, sketch=sketch, key=KEY)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv_transpose2d(x, w, b, **options)

    return [leaf(3, 4, 3, 2), leaf(4, 3, 3, 3), leaf(6)], sketched, plain


CASES = {
    "linear": linear_case,
    "conv": conv_case,
    "conv_reflect": lambda: conv_case("reflect"),
    "conv_transpose": transposed_case,
}
REDUCTIONS = {"sum": torch.sum, "mean": torch.mean, "squares": lambda y: y.square().sum()}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def through_x_hat(
    plain: Callable[..., Tensor], sketch: Sketch, x: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The layer in torch's operators: exact values, but the weight meets x_hat, whose derivative
    by x is 1 in expectation."""
    rows = x.detach() if x.dim() == 2 else x.detach().flatten(2).flatten(0, 1)
    kept = sketch.compress(rows, KEY)
    x_hat = sketch.decompress(kept, tuple(rows.shape), x.dtype, KEY).view(x.shape)
    read = plain(x + (x_hat - x).detach(), weight, bias)
    return read + (plain(x, weight, bias) - read).detach()


def penalty(layer: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss and of a penalty on the gradient by the layer's input."""
    generator = torch.Generator().manual_seed(0)
    output = layer(*inputs)
    random = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((output.tanh() * random).sum(), inputs[0], create_graph=True)
    weights = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
    total = (slope.square() * weights).sum() + (output.sin() * random).sum()
    return list(torch.autograd.grad(total, inputs))


@every_case
@every_sketch
def test_a_penalty_on_the_gradient_by_the_input(case: Callable, sketch: Sketch) -> None:
    torch.manual_seed(1)
    inputs, sketched, plain = case()
    actual = penalty(lambda *args: sketched(*args, sketch=sketch), inputs)
    expected = penalty(lambda *args: through_x_hat(plain, sketch, *args), inputs)
    for mine, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, reference)
    exact = penalty(plain, inputs)
    torch.testing.assert_close(actual[0], exact[0])
    torch.testing.assert_close(actual[2], exact[2])


@every_case
@lossy_sketch
@pytest.mark.parametrize("reduce", REDUCTIONS.values(), ids=REDUCTIONS.keys())
def test_of_a_weights_gradient_it_is_refused(
    case: Callable, sketch: Sketch, reduce: Callable[[Tensor], Tensor]
) -> None:
    inputs, sketched, _ = case()
    loss = reduce(sketched(*inputs, sketch=sketch))
    (grad,) = torch.autograd.grad(loss, inputs[1:2], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@every_case
def test_of_a_weights_gradient_of_what_is_kept_exactly_it_is_torchs(case: Callable) -> None:
    inputs, sketched, _ = case()
    assert torch.autograd.gradgradcheck(lambda *args: sketched(*args, sketch=Identity()), inputs)


def test_of_a_part_of_a_tensor_it_is_torchs() -> None:
    whole, weight = leaf(6, 10), leaf(4, 5)
    image, kernel = leaf(3, 4, 5, 5), leaf(2, 2, 3, 3)
    exact = {"sketch": Identity(), "key": KEY}
    assert torch.autograd.gradgradcheck(
        lambda x, w: functional.linear(x[:, :5], w, **exact), [whole, weight]
    )
    assert torch.autograd.gradgradcheck(
        lambda x, w: functional.conv(x[:, :2], w, **exact), [image, kernel]
    )


@every_case
def test_a_constant_gradient_stays_a_constant(case: Callable) -> None:
    inputs, sketched, _ = case()
    loss = sketched(inputs[0].detach(), *inputs[1:], sketch=StochasticRounding(3)).sum()
    (grad,) = torch.autograd.grad(loss, inputs[1:2], create_graph=True)
    assert not grad.requires_grad


EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_avg_pool2d": functional.relu_avg_pool2d,
    "avg_pool": lambda x: functional.avg_pool(x, 2, 2, padding=1),
    "adaptive_avg_pool2d": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "max_pool": lambda x: functional.max_pool(x, 2, 3, 2, 1),
    "dropout": lambda x: functional.dropout(x, 0.4, key=KEY),
}


@pytest.mark.parametrize("operator", EXACT.values(), ids=EXACT.keys())
def test_exact_operators_have_torchs(operator: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(operator, [leaf(2, 3, 6, 4)])


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Tanh(), nn.LeakyReLU()], ids=str)
def test_of_a_rounded_derivative_it_is_refused(layer: nn.Module) -> None:
    model = rad.convert(nn.Sequential(layer), StochasticRounding(4))
    x = torch.randn(3, 5, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("sketch", [Identity(), rad.SameSample(0.5)], ids=str)
def test_of_a_recurrent_layer_it_is_refused(nonlinearity: str, sketch: Sketch) -> None:
    model = rad.convert(nn.RNN(3, 5, nonlinearity=nonlinearity), sketch)
    x = torch.randn(4, 2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        slope.sum().backward()


def laplacian(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """As in physics-informed losses: shape (n,)."""
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    rows = [
        torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.ReLU])
def test_a_physics_informed_loss_is_exact_where_everything_is_kept(
    activation: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(2, 9), activation(), nn.Linear(9, 9), activation(), nn.Linear(9, 1)
    )
    net.double()
    x = leaf(6, 2)
    for model in (net, rad.convert(net, Identity())):
        (laplacian(model, x) + model(x)[:, 0]).square().sum().backward()
        found = [parameter.grad for parameter in model.parameters()]
        if model is net:
            expected = found
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(
    ("sketch", "n"), [(rad.DifferentSample(0.5), 1000), (rad.DitheredRounding(2), 200)], ids=str
)
def test_a_physics_informed_loss_is_unbiased(sketch: Sketch, n: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    net.double()
    x = leaf(3, 2)

    def gradient(model: nn.Module) -> Tensor:
        loss = (laplacian(model, x) + 1).square().sum()
        found = torch.autograd.grad(loss, list(model.parameters())[:-1])
        return torch.cat([grad.flatten() for grad in found])

    model = rad.convert(net, dict.fromkeys(("0", "2", "4"), sketch))
    samples = torch.stack([gradient(model) for _ in range(n)])  # 740 and 20 are needed
    check_unbiased(samples, gradient(net))
    check_biased_is_caught(samples, gradient(net))
