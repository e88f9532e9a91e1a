"""`torch.compile` of models whose functional calls are served: those of the uncompiled program."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import rad
from rad.memory import saved_bytes
from rad.sketches import DitheredRounding

ROUNDED = DitheredRounding(4)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


class Block(nn.Module):
    """A gated block, whose norm, product and activation function are functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(F.layer_norm(x, (8,))).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class Outer(nn.Module):
    """Calls of its own around and between two modules with theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.second(F.gelu(self.first(x))) * x)


class Broken(Outer):
    """A graph break between two calls."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        torch._dynamo.graph_break()
        return F.gelu(self.second(x))


def gradients(model: Callable[[Tensor], Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """By an input and the parameters, and the output."""
    torch.manual_seed(3)
    x = torch.randn(4, 8, requires_grad=True)
    output = model(x)
    return [output, *torch.autograd.grad(output.cos().sum(), [x, *parameters])]


@pytest.mark.parametrize(
    ("make", "backend"), [(Outer, "aot_eager"), (Broken, "aot_eager"), (Block, "inductor")]
)
def test_draws_and_gradients_are_those_of_eager(make: type[nn.Module], backend: str) -> None:
    torch.manual_seed(0)
    plain = make()
    eager = rad.convert(plain, ROUNDED, path=ROUNDED)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend=backend, fullgraph=make is not Broken)
    found = []
    for _ in range(2):
        found.append(gradients(compiled, list(model.parameters())))
        want = gradients(eager, list(eager.parameters()))
        torch.testing.assert_close(found[-1], want)
    assert not torch.allclose(found[0][1], found[1][1])  # draws of its own each time
    assert not _get_current_function_mode_stack()
    x = torch.randn(4, 8)
    kept = [saved_bytes(lambda m=m: m(x * 1)) for m in (compiled, eager, plain)]
    assert kept[0] == kept[1] < 0.6 * kept[2]


class Function(nn.Module):
    """A module that calls a function of its input and of a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "two values": lambda x, w: F.leaky_relu(x, 0.1) * w,
    "in place": lambda x, w: F.silu(x * w, inplace=True),
    "root mean square": lambda x, w: F.rms_norm(x, (8,), w),
    "one tensor twice": lambda x, w: F.layer_norm(x, (8,), w, w),
    "a square": lambda x, w: x * x + w,
    "attention of one tensor": lambda x, w: F.scaled_dot_product_attention(x, x, x) * w,
    "a power, which is torch's": lambda x, w: x**2 * w,
    "a loss": lambda x, w: F.cross_entropy(x * w, torch.arange(4)).view(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_eager(name: str) -> None:
    torch.manual_seed(0)
    plain = Function(FUNCTIONS[name])
    eager = rad.convert(plain, ROUNDED, path=ROUNDED)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got, want = (gradients(call, [call.w]) for call in (compiled, eager))
    exact = gradients(plain, [plain.w])
    if "torch's" not in name:
        torch.testing.assert_close(got, want)
        assert not all(map(torch.allclose, got, exact))
    for mine, theirs in zip(got, exact, strict=True):
        assert (mine - theirs).norm() < 0.3 * theirs.norm()
