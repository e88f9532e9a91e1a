"""Subclasses of torch's layers: served where they compute what torch's do."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import rad
from rad.memory import saved_bytes
from rad.nn.kinds import kind_of
from rad.sketches import DifferentSample, DitheredRounding, Identity

PATH = DitheredRounding(4)


class Scaled(nn.Linear):
    """Extra attributes, a constructor and a method of its own, and torch's forward pass."""

    def __init__(self, width: int, gain: float = 2.0) -> None:
        super().__init__(width, width)
        self.gain, self.name = gain, "scaled"
        self.register_buffer("seen", torch.zeros(3))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gain={getattr(self, 'gain', None)}"

    def norm(self) -> Tensor:
        return self.gain * self.weight.norm()


class Convolution(nn.Conv2d):
    """A constructor that knows better."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


class Frozen(nn.BatchNorm2d):
    """Its statistics stay."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class Words(nn.Embedding):
    pass


class Act(nn.GELU):
    pass


class Norm(nn.LayerNorm):
    pass


KINDS: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], tuple[int, ...] | Tensor]] = {
    "linear": (lambda: Scaled(6), rad.nn.Linear, (5, 6)),
    "convolution": (lambda: Convolution(3), rad.nn.Conv2d, (2, 3, 5, 5)),
    "embedding": (lambda: Words(7, 3), rad.nn.Embedding, torch.tensor([[1, 2], [6, 1]])),
    "activation": (Act, rad.nn.GELU, (5, 6)),
    "norm": (lambda: Norm(6), rad.nn.LayerNorm, (5, 6)),
    "frozen norm": (lambda: Frozen(3), rad.nn.BatchNorm2d, (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_subclass_with_torchs_forward_pass_is_served(name: str) -> None:
    make, layer, given = KINDS[name]
    torch.manual_seed(0)
    model = make().double()
    x = given if isinstance(given, Tensor) else torch.randn(given, dtype=torch.float64)
    converted = rad.convert(model, DitheredRounding(4), path=PATH)
    assert isinstance(converted, layer)
    assert isinstance(converted, type(model))
    assert type(converted).__name__ == type(model).__name__
    assert kind_of(converted) is layer
    assert kind_of(model) is getattr(nn, layer.__name__)
    assert torch.equal(converted(x), model(x))
    assert converted.state_dict().keys() == model.state_dict().keys()
    (row,) = rad.report(converted).replaced
    assert row.keeps == converted.keeps
    exact = rad.convert(model, Identity(), path=Identity())
    for mine, theirs in zip(_gradients(exact, x), _gradients(model, x), strict=True):
        assert torch.equal(mine, theirs)


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    given = x.clone().requires_grad_() if x.is_floating_point() else x
    wanted = [t for t in (given, *model.parameters()) if t.requires_grad]
    return list(torch.autograd.grad(model(given).cos().sum(), wanted))


def test_what_the_subclass_adds_stays() -> None:
    model = nn.Sequential(Scaled(64, gain=3.0), nn.ReLU())
    converted = rad.convert(model, DifferentSample(0.1))
    layer = converted[0]
    assert (layer.gain, layer.name) == (3.0, "scaled")
    assert torch.equal(layer.norm(), model[0].norm())
    assert "gain=3.0" in repr(layer)
    assert "DifferentSample" in repr(layer)
    x = torch.randn(50, 64)
    assert saved_bytes(lambda: layer(x * 1)) < 0.3 * x.nbytes
    again = rad.convert(converted, DitheredRounding(2))[0]
    assert type(again) is type(layer)
    assert again.sketch == DitheredRounding(2)
    rad.convert(model, DifferentSample(0.1), inplace=True)
    assert isinstance(model[0], Scaled)


def test_copies_and_pickles() -> None:
    layer = rad.convert(Scaled(6), DitheredRounding(4))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    x = torch.randn(3, 6)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    for each in copies:
        assert type(each) is type(layer)
        (got, *_), (want, *_) = (_gradients(copy.deepcopy(m), x) for m in (each, layer))
        assert torch.equal(got, want)


def test_under_a_parametrization() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer = Scaled(6)
    parametrize.register_parametrization(layer, "weight", Double())
    converted = rad.convert(layer, Identity())
    assert isinstance(converted, rad.nn.Linear)
    assert isinstance(converted, Scaled)
    x = torch.randn(3, 6)
    assert torch.equal(converted(x), layer(x))


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.abs(), self.bias)


class OwnCall(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight.abs(), bias)


class OwnWeight(nn.Linear):
    @property
    def weight(self) -> Tensor:
        return self.raw * 2

    @weight.setter
    def weight(self, value: nn.Parameter) -> None:
        self.raw = value


class OwnName(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.sketch = "a drawing"


class Mixin:
    def __call__(self, *arguments: Tensor) -> Tensor:
        return 2 * super().__call__(*arguments)  # type: ignore[misc, no-any-return]


class Mixed(Mixin, nn.Linear):
    pass


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "forward": (lambda: OwnForward(6, 6), (5, 6)),
    "_conv_forward": (lambda: OwnCall(3, 3, 1), (2, 3, 4, 4)),
    "__call__": (lambda: Mixed(6, 6), (5, 6)),
    "weight": (lambda: OwnWeight(6, 6), (5, 6)),
    "'sketch'": (lambda: OwnName(6), (5, 6)),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_subclass_that_may_compute_something_else_stays_and_the_report_says_why(
    name: str,
) -> None:
    make, shape = LEFT[name]
    model = nn.Sequential(make())
    converted = rad.convert(model, DitheredRounding(2), path=PATH)
    assert not isinstance(converted[0], rad.nn.Sketching)
    x = torch.randn(shape)
    assert torch.equal(converted(x), model(x))
    rows = {row.name: row for row in rad.report(converted).left}
    assert name in rows["0"].keeps
    assert rows["0"].remedy
