"""Weights that are used in several ways: no noise is missed, and what cannot be seen is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from unbiased import check_mean_square

import rad
from rad.errors import UsageError
from rad.planning.auto import layer_options
from rad.planning.probe import Trial

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


def loss(out: Tensor) -> Tensor:
    return out.square().mean()


class Net(nn.Module):
    """Two layers, which subclasses use in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)


class PastTheLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() + F.linear(x * 2, self.a.weight) + x @ self.a.weight.t())


class OnlyPastTheLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.a.weight).relu())


class Penalty(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + self.a.weight.square().sum()


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class TiedOnOneTensor(Tied):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + 2 * self.b(x)


class TiedAndParametrized(Net):
    def __init__(self) -> None:
        super().__init__()
        for layer in (self.a, self.b):
            parametrizations.weight_norm(layer)
        self.b.parametrizations.weight = self.a.parametrizations.weight  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + 2 * self.b(x)


class TiedToAnEmbedding(Net):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 6)
        self.a.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.embedding(x.argmax(1))))


class TwiceOnOneTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + 2 * self.a(x))


class AlsoUnderNoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.a(x)
        return self.b(self.a(x).relu() + target)


class AlsoDetached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() + self.a(x).detach())


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self.a, x, use_reentrant=False))


WATCHED: list[type[Net]] = [
    *(PastTheLayer, OnlyPastTheLayer, Penalty, Tied, TiedOnOneTensor, TiedToAnEmbedding),
    *(TwiceOnOneTensor, AlsoUnderNoGrad, AlsoDetached, Checkpointed),
]


def gradient(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss(model(X)).backward()
    grads = [p.grad for name, p in model.named_parameters() if "weight" in name]
    return torch.cat([g.flatten() for g in grads if g is not None])


@pytest.mark.parametrize("net", WATCHED)
def test_the_predicted_noise_is_the_measured_one(net: type[Net]) -> None:
    sketch, model = rad.DifferentSample(0.3), net()
    trial = Trial(model, X, loss)
    predicted = sum(
        trial.layers[name].weight_grad_variance(x, grad, sketch).item()
        for name, calls in trial.inputs_and_gradients().items()
        for x, grad in calls
    )
    converted = rad.convert(model, sketch, seed=1)
    n = 5000 if net is TiedToAnEmbedding else 1500  # 3,800, and of the others at most 1,000 needed
    samples = torch.stack([gradient(converted) for _ in range(n)])
    check_mean_square(samples, gradient(model), predicted)


@pytest.mark.parametrize("net", WATCHED)
@pytest.mark.parametrize("how", [{"variant": "auto"}, {"allocation": "optimal"}])
def test_such_models_are_planned_and_keep_the_budget(net: type[Net], how: dict[str, str]) -> None:
    plan = rad.fit(net(), X, loss, 0.5, **how)  # type: ignore[arg-type]
    limit = rad.fit(net(), X, loss, 0.5).memory.saved_bytes
    assert plan.memory.saved_bytes <= limit
    assert set(plan.layers or {}) == ({"b"} if net is OnlyPastTheLayer else {"a", "b"})


def test_one_parametrization_of_two_layers_draws_for_each() -> None:
    converted = rad.convert(TiedAndParametrized(), rad.DifferentSample(0.3))
    converted(X)
    assert converted.a.calls == converted.b.calls == 1


class PastItsCall(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a.forward(x))


class PastItsCallBesideNoGrad(Net):
    """The call without gradients is one that a count of calls would take for the other."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a(x)
        return self.b(self.a(x) + self.a.forward(x * 2))


class PastItsCallBesideRecomputation(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self.a, x, use_reentrant=False) + self.a.forward(x * 2))


@pytest.mark.parametrize(
    "net", [PastItsCall, PastItsCallBesideNoGrad, PastItsCallBesideRecomputation]
)
def test_a_use_that_cannot_be_watched_is_refused_by_name(net: type[Net]) -> None:
    with pytest.raises(UsageError, match="layer 'a' is used past its call"):
        layer_options(Trial(net(), X, loss))
    rad.fit(net(), X, loss, 0.5)  # measured, not predicted


class OnlyFunctions(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a.weight), self.b.weight)


@pytest.mark.parametrize("variant", ["different_sample", "stochastic_rounding", "auto"])
@pytest.mark.parametrize("budget", [0.5, "1.5 kB"])
def test_a_model_that_calls_no_layer_is_refused(variant: str, budget: float | str) -> None:
    with pytest.raises(UsageError, match=f"{variant} has nothing to sketch: the forward pass"):
        rad.fit(OnlyFunctions(), X, loss, budget, variant)


class Reentrant(Net):
    """The first layer's calls with gradients are in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self.a, x.clone().requires_grad_(), use_reentrant=True))


@pytest.mark.parametrize("variant", ["different_sample", "auto", "reduced_batch"])
def test_reentrant_checkpointing_is_refused(variant: str) -> None:
    with pytest.raises(UsageError, match="use_reentrant=False"):
        rad.fit(Reentrant(), X, loss, 0.5, variant)
