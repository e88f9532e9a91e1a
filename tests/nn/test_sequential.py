"""Linear layers and ReLUs that run together are the layers one by one, to the bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SKETCHES, HalvedSample
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import rad
from rad.memory import peak_bytes, saved_bytes
from rad.nn import sequential
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch

ROWS = 11
TOGETHER = "_StagesBackward"


def network(dtype: torch.dtype = torch.float32, inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(24, 13), nn.ReLU(), nn.Linear(13, 9), nn.ReLU()]
    layers += [nn.Linear(9, 9, bias=False), nn.Linear(9, 9), nn.ReLU(inplace), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, 4, 6, dtype=dtype)


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose layers run by themselves: each has a hook."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.register_forward_hook(lambda *_: None)
    return model


def gradients(model: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    inputs = [x, *getattr(model, "parameters", list)()]
    trained = [p for p in inputs if p.requires_grad]
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), trained)]


def nodes(output: Tensor) -> list[str]:
    """The names of the functions in the graph of an output."""
    met, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in met:
            met.add(node)
            waiting += [following for following, _ in node.next_functions]
    return [node.name() for node in met]


def check_equal(model: nn.Module, x: Tensor, steps: int = 2) -> None:
    other = one_by_one(model)
    assert saved_bytes(lambda: model(x)) == saved_bytes(lambda: other(x))
    for _ in range(steps):
        for mine, expected in zip(gradients(model, x), gradients(other, x), strict=True):
            assert torch.equal(mine.nan_to_num(77), expected.nan_to_num(77))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SKETCHES)
def test_equal_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = rad.convert(network(dtype), SKETCHES[name], seed=3)
    assert type(model) is rad.nn.Sequential
    assert TOGETHER in nodes(model(images(dtype)))
    check_equal(model, images(dtype))


def test_selectors_with_factors_of_their_own() -> None:
    model = rad.convert(network(), HalvedSample(0.2), seed=3)
    assert TOGETHER in nodes(model(images()))
    check_equal(model, images())


@pytest.mark.parametrize("sketch", [SameSample(0.2), DifferentSample(0.2), Identity()], ids=str)
def test_more_axes_than_two_and_rows_than_fit_in_a_piece(sketch: Sketch) -> None:
    layers = [nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3)]
    model = rad.convert(nn.Sequential(*layers), sketch)
    check_equal(model, torch.randn(3, 5, 30))
    check_equal(model, torch.randn(2, 700, 30))


def test_how_many_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())]
    x = torch.randn(4, 8)

    def count(sketch: Sketch) -> int:
        return nodes(rad.convert(nn.Sequential(*layers), sketch)(x)).count(TOGETHER)

    assert count(SameSample(0.5)) == 1
    assert count(Identity()) == 6  # what is kept exactly stays in the graph
    monkeypatch.setattr(sequential, "TOGETHER", 2 * 4 * (64 + 32))
    assert count(SameSample(0.5)) == 2


def test_numbers_that_are_not_finite_show_as_they_do_one_by_one() -> None:
    model = rad.convert(network(), DifferentSample(0.5))
    for place, value in ((0, torch.nan), (7, torch.inf), (50, -torch.inf)):
        x = images()
        x.flatten()[place] = value
        check_equal(model, x, steps=5)
    with torch.no_grad():
        model[1].weight[2, 3] = torch.inf
    check_equal(model, images())


APART: dict[str, Callable[[Any], object]] = {
    "hook": lambda m: [layer.register_forward_hook(lambda *_: None) for layer in m],
    "pre_hook": lambda m: [layer.register_forward_pre_hook(lambda *_: None) for layer in m],
    "backward_hook": lambda m: [layer.register_full_backward_hook(lambda *_: None) for layer in m],
    "evaluated": lambda m: [layer.eval() for layer in m],
    "frozen": lambda m: [
        layer.weight.requires_grad_(False) for layer in m if isinstance(layer, nn.Linear)
    ],
    "parametrized": lambda m: [
        parametrizations.weight_norm(layer) for layer in m if isinstance(layer, nn.Linear)
    ],
    "replaced": lambda m: [setattr(layer, "forward", layer.forward) for layer in m],
}


@pytest.mark.parametrize("name", APART)
def test_what_runs_by_itself(name: str) -> None:
    model, x = rad.convert(network(inplace=False), SameSample(0.3)), images().requires_grad_()
    assert TOGETHER in nodes(model(x))
    APART[name](model)
    assert TOGETHER not in nodes(model(x))


def test_a_hook_sees_every_call() -> None:
    model, seen = rad.convert(network(), SameSample(0.3)), []
    model(images())
    model[3].register_forward_hook(lambda layer, given, output: seen.append(output.shape))
    output = model(images())
    assert seen == [(ROWS, 9)]
    assert TOGETHER in nodes(output)
    check_equal(model, images())


def test_global_hooks_autocast_and_compilation_see_the_layers() -> None:
    model, x, seen = rad.convert(network(), SameSample(0.3)), images(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    model(x)
    handle.remove()
    assert seen.count(rad.nn.Linear) == 6
    with torch.autocast("cpu", torch.bfloat16):
        assert TOGETHER not in nodes(model(x))
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for mine, expected in zip(gradients(compiled, x), gradients(model, x), strict=False):
        torch.testing.assert_close(mine, expected)
    with torch.no_grad():
        assert torch.equal(model(x), one_by_one(model)(x))


def test_gradients_of_an_inputs_gradient_are_those_one_by_one() -> None:
    for sketch in (SameSample(0.4), Project(0.4), Identity()):
        model = rad.convert(network(torch.float64), sketch)
        found, start = [], images(torch.float64)
        for each in (model, one_by_one(model)):
            x = start.clone().requires_grad_()
            (grad,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
            grad.square().sum().backward()
            found.append([x.grad, *(p.grad for p in each.parameters())])
        for mine, expected in zip(*found, strict=True):
            torch.testing.assert_close(mine, expected)


def test_a_weights_gradient_has_no_derivative() -> None:
    model = rad.convert(network(), SameSample(0.4))
    loss = model(images()).square().sum()
    weight = model[1].weight
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_and_twice_backward(reentrant: bool) -> None:
    model = rad.convert(network(), DifferentSample(0.4))
    again = copy.deepcopy(model)
    x = images()
    expected = gradients(model, x)
    found = gradients(again, x)
    assert all(map(torch.equal, found, expected))
    x.requires_grad_()
    output = checkpoint(model, x, use_reentrant=reentrant)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    output = model(x)
    first = torch.autograd.grad(output.sum(), list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(output.sum(), list(model.parameters()))
    assert all(map(torch.equal, first, second))


def test_the_input_of_several_sequences_is_kept_once() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = [nn.Sequential(nn.Linear(20, 5), nn.ReLU()) for _ in range(3)]
            self.parts = nn.ModuleList(parts)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [part(x) for part in self.parts]

    model = rad.convert(Branches(), SameSample(0.5))
    x = torch.randn(ROWS, 20)
    bits = -(-ROWS * 5 // 8)
    assert saved_bytes(lambda: model(x)) == 4 * ROWS * 10 + 8 + 3 * bits


@pytest.mark.parametrize("sketch", [SameSample(0.1), DifferentSample(0.1), Identity()], ids=str)
def test_the_peak_is_that_one_by_one_but_for_a_bounded_part(sketch: Sketch) -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = rad.convert(nn.Sequential(*layers), sketch)
    other = one_by_one(model)

    def peak(model: nn.Module, rows: int) -> int:
        return peak_bytes(lambda: model(torch.randn(rows, 64)).sum().backward())

    for rows in (128, 4096):
        assert peak(model, rows) <= peak(other, rows) + sequential.TOGETHER + sequential.HELD
    assert TOGETHER in nodes(model(torch.randn(128, 64)))
    assert TOGETHER not in nodes(model(torch.randn(4096, 64)))
