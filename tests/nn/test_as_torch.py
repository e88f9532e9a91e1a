"""Layers are called as torch's are, and are torch's where nothing is kept."""

import inspect
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from modes import Named, Seen
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import rad
from rad.nn import LAYERS
from rad.nn.base import Sketching
from rad.nn.plain import PlainTransposedLinear
from rad.sketches import StochasticRounding

ARGUMENTS: dict[type[nn.Module], tuple[tuple[Any, ...], tuple[int, ...]]] = {
    nn.Linear: ((6, 5), (2, 6)),
    PlainTransposedLinear: ((6, 5), (2, 6)),
    nn.Conv1d: ((3, 5, 3), (2, 3, 6)),
    nn.Conv2d: ((3, 5, 3), (2, 3, 6, 6)),
    nn.Conv3d: ((3, 5, 3), (2, 3, 4, 4, 4)),
    nn.ConvTranspose1d: ((3, 5, 3), (2, 3, 6)),
    nn.ConvTranspose2d: ((3, 5, 3), (2, 3, 6, 6)),
    nn.ConvTranspose3d: ((3, 5, 3), (2, 3, 4, 4, 4)),
    nn.AvgPool1d: ((2,), (2, 3, 6)),
    nn.AvgPool2d: ((2,), (2, 3, 6, 6)),
    nn.AvgPool3d: ((2,), (2, 3, 4, 4, 4)),
    nn.AdaptiveAvgPool2d: ((2,), (2, 3, 6, 6)),
    nn.MaxPool1d: ((2,), (2, 3, 6)),
    nn.MaxPool2d: ((2,), (2, 3, 6, 6)),
    nn.MaxPool3d: ((2,), (2, 3, 4, 4, 4)),
    nn.Embedding: ((9, 5), (2, 3)),
    nn.RNN: ((3, 5), (4, 2, 3)),
    nn.LSTM: ((3, 5), (4, 2, 3)),
    nn.GRU: ((3, 5), (4, 2, 3)),
}
"""Constructor's arguments and input's shape of the layers that are not elementwise."""

IN_PLACE = [nn.ReLU, nn.SiLU, nn.Mish, nn.ELU, nn.LeakyReLU, nn.SELU, nn.CELU, nn.Hardswish]
IN_PLACE += [nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.Dropout]

every_layer = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)


def converted(kind: type[nn.Module], **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """torch's layer, its conversion, and an input."""
    torch.manual_seed(0)
    arguments, shape = ARGUMENTS.get(kind, ((), (2, 3, 7)))
    layer = kind(*arguments, **options)
    x = torch.randint(9, shape) if kind is nn.Embedding else torch.randn(shape)
    return layer, rad.convert(layer, StochasticRounding(4)), x


@every_layer
def test_forward_takes_the_arguments_that_torch_names(kind: type[nn.Module]) -> None:
    theirs, ours, x = converted(kind)
    assert list(inspect.signature(type(ours).forward).parameters) == list(
        inspect.signature(type(theirs).forward).parameters
    )
    for mode in (True, False):
        if kind is not nn.Dropout or not mode:
            torch.testing.assert_close(ours.train(mode)(input=x), theirs.train(mode)(x))


@every_layer
def test_what_a_sketching_layer_calls_goes_through_no_mode(kind: type[nn.Module]) -> None:
    """But for tensors of a class of their own, whose calls are their own affair."""
    _, layer, x = converted(kind)
    if not isinstance(layer, Sketching):
        pytest.skip("keeps no sketch")
    with Seen() as seen:
        output = layer(x)
    assert seen.count == 0
    draws = (layer.key.clone(), layer.calls.clone())
    layer.calls.zero_()
    with Seen() as seen:
        of_class = layer(x.as_subclass(Named))
    assert seen.count > 0
    assert all(torch.equal(a, b) for a, b in zip(draws, (layer.key, layer.calls), strict=True))
    first, again = (each[0] if isinstance(each, tuple) else each for each in (output, of_class))
    torch.testing.assert_close(again.as_subclass(Tensor), first, rtol=0, atol=0)


@every_layer
def test_evaluation_keeps_and_returns_what_torch_does(kind: type[nn.Module]) -> None:
    results = []
    for layer in converted(kind)[:2]:
        x = converted(kind)[2]
        leaf = layer.weight if kind is nn.Embedding else x.requires_grad_()
        output = layer.eval()(x)
        output = output[0] if isinstance(output, tuple) else output
        node = type(output.grad_fn).__name__
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        results.append((output, node, gradient))
    (want, node, gradient), (got, same_node, same_gradient) = results
    assert torch.equal(got, want)
    assert same_node == node
    assert torch.equal(same_gradient, gradient)


def pooling_net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.SiLU(), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)]
    more = [nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    torch.manual_seed(0)
    return rad.convert(nn.Sequential(*layers, *more), StochasticRounding(4))


def test_evaluation_can_be_traced_and_saved() -> None:
    model, x = pooling_net().eval(), torch.randn(2, 3, 14, 14)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model, x), file)
        file.seek(0)
        loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize("layer", [nn.ReLU, nn.SiLU, rad.nn.ReLUAvgPool2d])
def test_without_gradients_training_mode_can_be_traced(layer: type[nn.Module]) -> None:
    model, x = rad.convert(layer(), StochasticRounding(4)), torch.randn(1, 2, 4, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))


def test_evaluation_goes_through_transforms() -> None:
    model, x = pooling_net().eval(), torch.randn(5, 3, 14, 14)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(model, parameters, (x[None],))
        return output.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    exact = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    for name, gradient in zip(parameters, exact, strict=True):
        torch.testing.assert_close(each[name].sum(0), gradient)


class Discarding(nn.Module):
    """Calls its layer for what it does to the input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(7, 8), layer

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        self.layer(hidden)
        return hidden


@pytest.mark.parametrize("kind", IN_PLACE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("part", [lambda x: x, lambda x: x[:, 1:5]], ids=["whole", "view"])
def test_in_place_layers_change_their_input(
    kind: type[nn.Module], hooked: bool, part: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    plain, in_place = (rad.convert(kind(inplace=i), StochasticRounding(8)) for i in (False, True))
    seen: list[Tensor] = []
    if hooked:
        in_place.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(5, 8, requires_grad=True)
    results = []
    for layer in (plain, in_place):
        torch.manual_seed(1)
        hidden = x * 2
        output = layer(part(hidden))
        if layer is in_place:
            assert torch.equal(output, part(hidden))
        else:
            part(hidden).copy_(output)
        gradient = torch.autograd.grad(hidden.square().sum(), x)[0]
        results.append((hidden, gradient))
    torch.testing.assert_close(results[1], results[0])
    assert len(seen) == hooked


@pytest.mark.parametrize("kind", IN_PLACE[1:-1], ids=lambda kind: kind.__name__)
def test_a_discarded_result_leaves_torchs_forward_pass(kind: type[nn.Module]) -> None:
    model, x = Discarding(kind(inplace=True)), torch.randn(5, 7)
    sketched = rad.convert(model, StochasticRounding(4))
    assert torch.equal(sketched(x), model(x))


@pytest.mark.parametrize("kind", IN_PLACE, ids=lambda kind: kind.__name__)
def test_a_leaf_is_not_changed_in_place(kind: type[nn.Module]) -> None:
    layer = rad.convert(kind(inplace=True), StochasticRounding(4))
    x = torch.randn(9, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        layer(x)
    assert torch.equal(x, before)
