"""`torch.compile` of converted models: the draws and gradients of the eager program, in one graph.

One model holds a layer for each sketch, side by side, so that a compilation covers all of them.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SKETCHES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rad
from rad.backends.operators import as_text, from_text
from rad.models import convnet as paper_convnet
from rad.nn import ReLUAvgPool2d
from rad.sketches import DifferentSample, Identity, Project, Sketch, StochasticRounding

STEPS = 5
FEW = {name: SKETCHES[name] for name in ("identity", "different_sample", "project")}
FEW |= {"rounding": SKETCHES["stochastic_rounding"], "rows": SKETCHES["importance_sampling"]}


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


every_backend = pytest.mark.parametrize("backend", ["aot_eager", "inductor"])


class SideBySide(nn.Module):
    """The results of several modules on one input."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x) for part in self.parts.values()]


def one_a_sketch(make: Callable[[], nn.Module], sketches: dict[str, Sketch]) -> nn.Module:
    """A layer for each of the sketches."""
    layers = SideBySide({name: make() for name in sketches})
    return rad.convert(layers, {f"parts.{name}": sketch for name, sketch in sketches.items()})


def activations() -> nn.Module:
    layers = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Tanh(), nn.Sigmoid()]
    layers += [nn.Softplus(2.0), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.SELU(), nn.CELU(0.7)]
    layers += [nn.Hardswish(), nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink(), nn.Hardsigmoid()]
    layers += [nn.Hardtanh(-0.5, 0.8), nn.ReLU6(), nn.Softshrink(0.3), nn.Hardshrink(0.3)]
    return rad.convert(SideBySide({f"{i}": layer for i, layer in enumerate(layers)}), ROUNDED)


def exact_layers() -> nn.Module:
    layers = [nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, padding=1), nn.Dropout(0.3)]
    layers += [nn.Dropout(0.3), nn.AdaptiveAvgPool2d(3), ReLUAvgPool2d()]
    layers += [nn.Sequential(nn.Identity(), nn.Conv2d(4, 3, 1), nn.ReLU(inplace=True))]
    return rad.convert(SideBySide({f"{i}": layer for i, layer in enumerate(layers)}), ROUNDED)


ROUNDED = StochasticRounding(3)
IMAGES = (6, 4, 7, 8)
SKETCHING: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(11, 3), (9, 11)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGES),
    "conv_reflect": (lambda: nn.Conv1d(4, 2, 3, padding=1, padding_mode="reflect"), (3, 4, 9)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (3, 4, 4, 3)),
}
OTHERS = {"activations": activations, "exact": exact_layers}
every_layer = pytest.mark.parametrize("name", [*SKETCHING, *OTHERS])


def feedforward(sketch: Sketch) -> nn.Module:
    layers = [nn.Linear(20, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 30), nn.ReLU()]
    return rad.convert(nn.Sequential(*layers, nn.Linear(30, 10)), sketch)


def convnet(sketch: Sketch) -> nn.Module:
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, 5)]
    return rad.convert(nn.Sequential(*layers), sketch)


def gradients(model: Callable[[Tensor], Any], step: int, shape: tuple[int, ...]) -> list[Tensor]:
    """Of a random linear function of the results, by input and parameters."""
    torch.manual_seed(step)
    x = torch.randn(shape, requires_grad=True)
    outputs = model(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    generator = torch.Generator().manual_seed(step)
    random = [torch.randn(output.shape, generator=generator) for output in outputs]
    loss = functools.reduce(
        operator.add, [(o * r).sum() for o, r in zip(outputs, random, strict=True)]
    )
    parameters = list(getattr(model, "parameters", list)())
    return [*outputs, *torch.autograd.grad(loss, [x, *parameters])]


def check_equals_eager(make: Callable[[], nn.Module], shape: tuple[int, ...], backend: str) -> None:
    torch.manual_seed(0)
    eager = make()
    torch.manual_seed(0)
    compiled = torch.compile(make(), backend=backend, fullgraph=True)
    for step in range(STEPS):
        expected, actual = gradients(eager, step, shape), gradients(compiled, step, shape)
        for mine, reference in zip(actual, expected, strict=True):
            if backend == "aot_eager":
                assert torch.equal(mine, reference)
            else:
                torch.testing.assert_close(mine, reference)


def layers(
    name: str, sketches: dict[str, Sketch]
) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    """What makes the layers of that name, with those sketches where they have any; the input."""
    if name in OTHERS:
        return OTHERS[name], IMAGES
    make, shape = SKETCHING[name]
    return lambda: one_a_sketch(make, sketches), shape


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in (*SKETCHING, *OTHERS)),
        *((name, "inductor") for name in ("linear", "conv", *OTHERS)),
    ],
)
def test_draws_and_gradients_are_those_of_eager(name: str, backend: str) -> None:
    """Every sketch in a linear layer and in a convolution; but inductor, to which all are one
    opaque call, has every sketch in the first alone."""
    few = name not in ("linear", "conv") or (backend, name) == ("inductor", "conv")
    check_equals_eager(*layers(name, FEW if few else SKETCHES), backend)


@pytest.mark.parametrize(
    ("make", "shape", "backend"),
    [
        (feedforward, (7, 20), "aot_eager"),
        (convnet, (5, 4, 8, 8), "aot_eager"),
        (convnet, (5, 4, 8, 8), "inductor"),
    ],
)
def test_networks_are_those_of_eager(
    make: Callable[[Sketch], nn.Module], shape: tuple[int, ...], backend: str
) -> None:
    check_equals_eager(lambda: make(DifferentSample(0.3)), shape, backend)


def test_two_dropout_layers_draw_each_for_itself() -> None:
    model = SideBySide({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)})
    compiled = torch.compile(rad.convert(model, Identity()), backend="inductor", fullgraph=True)
    one, other = compiled(torch.ones(40, requires_grad=True))
    assert not torch.equal(one, other)


@every_layer
def test_second_derivatives_are_refused(name: str) -> None:
    """The program as a whole refuses: one layer that does not would pass beside one that does."""
    make, shape = layers(name, {"one": DifferentSample(0.3)})
    model = torch.compile(make(), backend="aot_eager")
    x = torch.randn(shape, requires_grad=True)
    loss = functools.reduce(operator.add, [output.square().sum() for output in model(x)])
    with pytest.raises(RuntimeError, match=r"double backward|create_graph"):
        torch.autograd.grad(loss, x, create_graph=True)[0].square().sum().backward()


@pytest.mark.parametrize("sketch", [DifferentSample(0.1), Identity()], ids=str)
def test_saved_bytes_are_those_of_eager(sketch: Sketch) -> None:
    """Inductor may keep convolutions' weights in another layout, of plain torch's models, too."""
    model = rad.convert(paper_convnet((3, 32, 32), 10), sketch)
    x = torch.randn(20, 3, 32, 32)
    eager = rad.memory.saved_bytes(lambda: model(x).sum())
    with torch._inductor.config.patch(layout_optimization=False):
        compiled = torch.compile(model, backend="inductor", fullgraph=True)
        assert rad.memory.saved_bytes(lambda: compiled(x).sum()) <= 1.05 * eager


@every_backend
def test_a_recurrent_layer_breaks_the_graph_and_says_so(backend: str) -> None:
    make = lambda: rad.convert(nn.RNN(3, 4, nonlinearity="relu"), Project(0.5))  # noqa: E731
    torch.manual_seed(0)
    eager = make()
    torch.manual_seed(0)
    compiled = torch.compile(make(), backend=backend)
    x = torch.randn(5, 2, 3)
    for _ in range(2):
        for model in (eager, compiled):
            model.zero_grad()
            model(x)[0].square().sum().backward()
        for mine, reference in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad)


@pytest.mark.parametrize(("allowed", "words"), [(False, "RNN"), (True, "disable")])
def test_a_recurrent_layer_in_one_graph_is_refused(allowed: bool, words: str) -> None:
    model = nn.Sequential(rad.convert(nn.RNN(3, 4, nonlinearity="relu"), Project(0.5)))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with (
        torch._dynamo.config.patch(allow_rnn=allowed),
        pytest.raises(torch._dynamo.exc.Unsupported, match=words),
    ):
        compiled(torch.randn(5, 2, 3))


@every_backend
def test_a_checkpointed_dropout_drops_the_same_in_backward(backend: str) -> None:
    layer = rad.convert(nn.Sequential(nn.Dropout(0.5), nn.Identity()), Identity())
    function = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False), backend=backend)
    x = torch.ones(200, requires_grad=True)
    for _ in range(3):
        x.grad = None
        y = function(x)
        y.sum().backward()
        assert torch.equal(y != 0, x.grad != 0)


def test_layers_in_place_are_those_of_eager() -> None:
    layers = [nn.SiLU(inplace=True), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(0.3, inplace=True)]
    check_equals_eager(
        lambda: rad.convert(nn.Sequential(nn.Linear(11, 5), *layers), ROUNDED), (6, 11), "aot_eager"
    )


def test_a_sketch_travels_as_text() -> None:
    for sketch in SKETCHES.values():
        assert from_text(as_text(sketch)) == sketch


def test_a_sketch_that_has_no_name_is_refused() -> None:
    class Local(DifferentSample):
        pass

    with pytest.raises(TypeError, match="top level of a module"):
        as_text(Local(0.5))
