"""The key that decodes is the key that encoded, whatever lies between forward and backward.

The reference is a plain torch program: each weight meets x_hat = decompress(compress(x)), drawn
with the key of one call of the layer, and everything else is exact. The gradients of all weights
must be its gradients for the key of that very call, and differ from those for the next key.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_reference import unrolled
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rad
from rad.functional.dropout import random_key
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Project,
    SameSample,
    SampledRounding,
    Sketch,
    fold_in,
    make_key,
)
from rad.sketches.base import Shape
from rad.sketches.blockwise import Rounding

SEED = 5


@dataclass(frozen=True)
class DecodedWithAnotherKey(SameSample):
    """The control: it encodes as its parent does, and decodes with another key."""

    def contract(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, key: Tensor
    ) -> Tensor:
        return super().contract(left, saved, shape, fold_in(key, 1))

    def contract_steps(
        self, left: Tensor, saved: tuple[Tensor, ...], shape: Shape, keys: Tensor
    ) -> Tensor:
        return super().contract_steps(left, saved, shape, fold_in(keys, 1))

    def decompress(
        self,
        saved: tuple[Tensor, ...],
        shape: Shape,
        dtype: torch.dtype,
        key: Tensor,
        rows: range | None = None,
    ) -> Tensor:
        return super().decompress(saved, shape, dtype, fold_in(key, 1), rows)


SKETCHES: dict[str, Sketch] = {
    "different_sample": DifferentSample(0.4),
    "project": Project(0.4),
    "dithered_rounding": DitheredRounding(2),
    "sampled_rounding": SampledRounding(0.5, 2),
}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(11, 7), nn.Linear(7, 3)), (6, 11)),
    "run": (
        lambda: nn.Sequential(
            nn.Linear(11, 9),
            nn.ReLU(),
            nn.Linear(9, 7, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(7, 3),
        ),
        (6, 11),
    ),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, (3, 2))),
        (3, 2, 5, 4),
    ),
    "rnn": (lambda: nn.Sequential(nn.RNN(4, 7, nonlinearity="relu"), LastState()), (9, 3, 4)),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 32), LastState()), (9, 3, 4)),
    "gru": (lambda: nn.Sequential(nn.GRU(4, 32), LastState()), (9, 3, 4)),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(11, 9), nn.ReLU(), nn.Dropout(0.4), nn.Linear(9, 3)),
        (6, 11),
    ),
}
RECURRENT, GATED = ("rnn", "lstm", "gru"), ("lstm", "gru")
"""Nets that are not compiled; those that draw for roundings only."""


def pairs(nets: Iterable[str]) -> pytest.MarkDecorator:
    """Each net with each sketch that draws in it."""
    drawing = [
        pytest.param(net, sketch, id=f"{net}-{name}")
        for net in nets
        for name, sketch in SKETCHES.items()
        if net not in GATED or isinstance(sketch, Rounding)
    ]
    return pytest.mark.parametrize(("net", "sketch"), drawing)


every_pair = pairs(NETS)
compiled_pair = pairs(net for net in NETS if net not in RECURRENT)
reentrant = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not"])


class LastState(nn.Module):
    """The last state of a recurrent layer's pair of outputs."""

    def forward(self, output: Any) -> Tensor:
        last: Tensor = output[1][0]
        return last if last.dim() == 2 else last[0]


class Case:
    """A converted net, what it is called with, and what its gradients must be."""

    def __init__(self, net: str, sketch: Sketch) -> None:
        torch.manual_seed(1)
        make, self.shape = NETS[net]
        self.plain = make().double()
        self.sketch = sketch
        self.model = rad.convert(self.plain, sketch, seed=SEED)

    def input(self, call: int) -> Tensor:
        """The input of a call: different from call to call."""
        torch.manual_seed(10 + call)
        return torch.randn(self.shape, dtype=torch.float64, requires_grad=True)

    def run(self, forward: Callable[[Tensor], Tensor], call: int) -> Tensor:
        """The output for the input of that call, and torch's generator as that call finds it."""
        x = self.input(call)
        torch.manual_seed(call)
        return forward(x)

    def gradients(self, output: Tensor, place: int = 0, keep: bool = False) -> list[Tensor]:
        """Those of all parameters for a random gradient of the output, which `place` chooses."""
        for parameter in self.model.parameters():
            parameter.grad = None
        output.backward(self._grad_output(output, place), retain_graph=keep)
        return [parameter.grad for parameter in self.model.parameters()]  # type: ignore[misc]

    def expected(self, call: int, draw: int, place: int = 0) -> list[Tensor]:
        """The reference: the input of one call, and the keys of the layers' draw number `draw`."""
        output = self.run(lambda x: self._reference(x, draw), call)
        grad_output = self._grad_output(output, place)
        return list(torch.autograd.grad(output, list(self.plain.parameters()), grad_output))

    def check(self, gradients: list[Tensor], call: int, draw: int, place: int = 0) -> None:
        """They are those of that draw, and of no other."""
        for mine, reference in zip(gradients, self.expected(call, draw, place), strict=True):
            torch.testing.assert_close(mine, reference)
        weights = [i for i, p in enumerate(self.plain.parameters()) if p.dim() > 1]
        for other in (draw - 1, draw + 1):
            wrong = self.expected(call, other, place)
            assert not any(torch.allclose(gradients[i], wrong[i], rtol=1e-3) for i in weights)

    def _grad_output(self, output: Tensor, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(place)
        return torch.randn(output.shape, generator=generator, dtype=output.dtype)

    def _reference(self, x: Tensor, draw: int) -> Tensor:
        place = 0
        for layer in self.plain.children():
            key = fold_in(fold_in(make_key(SEED), place), draw)
            if isinstance(layer, nn.Linear | nn.Conv2d):
                function = layer._conv_forward if isinstance(layer, nn.Conv2d) else F.linear
                x = self._product(function, x, layer.weight, layer.bias, key)
            elif isinstance(layer, nn.RNN):
                x = self._last_state(layer, x, key)
            elif isinstance(layer, nn.LSTM | nn.GRU):
                zeros = x.new_zeros(x.shape[1], layer.hidden_size)
                states = [zeros] * (2 if isinstance(layer, nn.LSTM) else 1)
                x = unrolled(x, states, list(layer.parameters()), self.sketch, fold_in(key, 0))[1]
            elif isinstance(layer, nn.Dropout):
                ones = torch.ones_like(x, requires_grad=False)
                x = x * rad.functional.dropout(ones, layer.p, key=random_key(x.device))
            elif isinstance(layer, nn.ReLU):
                x = torch.relu(x)
            place += bool(list(layer.parameters()))
        return x

    def _product(
        self,
        function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        key: Tensor,
    ) -> Tensor:
        """function(x, weight, bias), whose derivative by the weight is that at x_hat."""
        rows = x.detach() if x.dim() == 2 else x.detach().flatten(2).flatten(0, 1)
        kept = self.sketch.compress(rows, key)
        x_hat = self.sketch.decompress(kept, tuple(rows.shape), rows.dtype, key).view(x.shape)
        read = function(x_hat, weight, None)
        return function(x, weight.detach(), bias) + (read - read.detach())

    def _last_state(self, layer: nn.RNN, x: Tensor, key: Tensor) -> Tensor:
        weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
        of_states, of_inputs = (fold_in(fold_in(key, 0), i) for i in (0, 1))
        h = x.new_zeros(x.shape[1], layer.hidden_size)
        for t, x_t in enumerate(x):
            added = self._product(F.linear, x_t, weight_ih, bias_ih, fold_in(of_inputs, t))
            h = self._product(F.linear, h, weight_hh, bias_hh, fold_in(of_states, t)) + added
            h = torch.relu(h)
        return h


@every_pair
def test_eager_and_with_two_forward_passes_before_the_backward_passes(
    net: str, sketch: Sketch
) -> None:
    case = Case(net, sketch)
    outputs = [case.run(case.model, call) for call in range(3)]
    for call in (1, 0, 2):
        case.check(case.gradients(outputs[call]), call, draw=call)


def test_layers_of_a_run_are_one_function() -> None:
    """So that the nets here try those keys, too."""
    output = Case("run", DifferentSample(0.4)).model(torch.ones(6, 11, dtype=torch.float64))
    assert output.grad_fn.name() == "_StagesBackward"
    before = {type(node).__name__ for node, _ in output.grad_fn.next_functions}
    assert before == {"AccumulateGrad", "NoneType"}


@every_pair
def test_one_backward_pass_after_two_forward_passes(net: str, sketch: Sketch) -> None:
    case = Case(net, sketch)
    outputs = torch.cat([case.run(case.model, call) for call in range(2)])
    grad_output = torch.cat([case._grad_output(part, 0) for part in outputs.chunk(2)])
    outputs.backward(grad_output)
    both = zip(case.expected(0, draw=0), case.expected(1, draw=1), strict=True)
    for parameter, (first, second) in zip(case.model.parameters(), both, strict=True):
        torch.testing.assert_close(parameter.grad, first + second)


@every_pair
def test_two_backward_passes_with_retain_graph(net: str, sketch: Sketch) -> None:
    case = Case(net, sketch)
    output = case.run(case.model, 0)
    case.run(case.model, 1)  # draws, in between
    for place in range(2):
        case.check(case.gradients(output, place, keep=True), 0, draw=0, place=place)


@reentrant
@every_pair
def test_under_activation_checkpointing(net: str, sketch: Sketch, use_reentrant: bool) -> None:
    """What is recomputed is drawn anew, and read with the key of that draw.

    The first pass draws too, unless the reentrant form runs it without gradients.
    """
    case = Case(net, sketch)
    outputs = [
        case.run(lambda x: checkpoint(case.model, x, use_reentrant=use_reentrant), call)
        for call in range(2)
    ]
    drawn = 0 if use_reentrant else 2
    for number, call in enumerate((1, 0)):
        case.check(case.gradients(outputs[call]), call, draw=drawn + number)


def _check_compiled(net: str, sketch: Sketch, backend: str) -> None:
    torch.compiler.reset()
    case = Case(net, sketch)
    compiled = torch.compile(case.model, backend=backend, fullgraph=True)
    outputs = [case.run(compiled, call) for call in range(2)]
    for place in range(2):
        for call in (1, 0):
            gradients = case.gradients(outputs[call], place, keep=True)
            case.check(gradients, call, draw=call, place=place)


@compiled_pair
def test_compiled(net: str, sketch: Sketch) -> None:
    _check_compiled(net, sketch, "aot_eager")


def test_compiled_with_inductor() -> None:
    _check_compiled("linear", DifferentSample(0.4), "inductor")


@dataclass(frozen=True)
class RoundedWithAnotherKey(DitheredRounding):
    """The same of a rounding."""

    def decompress_steps(
        self, saved: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype, keys: Tensor
    ) -> Tensor:
        return super().decompress_steps(saved, shape, dtype, fold_in(keys, 1))


@pytest.mark.parametrize("net", NETS)
def test_another_key_is_caught(net: str) -> None:
    gated = net in GATED
    case = Case(net, RoundedWithAnotherKey(2) if gated else DecodedWithAnotherKey(0.4))
    output = case.run(case.model, 0)
    case.sketch = DitheredRounding(2) if gated else SameSample(0.4)
    with pytest.raises(AssertionError, match="not close"):
        case.check(case.gradients(output), 0, draw=0)
