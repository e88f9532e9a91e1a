import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unbiased import check_mean_square

import rad
from rad import models
from rad.memory import parameter_bytes, saved_bytes
from rad.planning.allocation import LayerCost, MakeSketch, alike, layer_costs
from rad.planning.greedy import Option, along, at, divide, total_bytes, total_variance
from rad.planning.probe import Trial

BATCH = 12
X, Y = torch.randn(BATCH, 2, 6, 6), torch.randint(4, (BATCH,))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 15), nn.ReLU(), nn.Linear(15, 4)
    )


def loss(out: Tensor) -> Tensor:
    return F.cross_entropy(out, Y[: len(out)].clone())


def total(layers: list[LayerCost], make: MakeSketch, kept: dict[str, int]) -> float:
    return sum(layer.variance(make, kept[layer.name]) for layer in layers)


def gradient(model: nn.Module) -> Tensor:
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(X)), weights)])


@pytest.mark.parametrize("variant", ["same_sample", "different_sample", "project"])
@pytest.mark.parametrize("budget", [0.1, 0.4, 0.9])
def test_no_more_bytes_and_less_predicted_variance_than_uniform(
    variant: str, budget: float
) -> None:
    model = network()
    uniform = rad.fit(model, (X,), loss, budget, variant)
    optimal = rad.fit(model, (X,), loss, budget, variant, allocation="optimal")
    assert optimal.memory.saved_bytes <= uniform.memory.saved_bytes
    assert optimal.keep_fraction is None
    assert set(optimal.layers or {}) == {"0", "3", "5"}

    make = type(uniform.sketch)
    costs = layer_costs(Trial(model, (X,), loss), make, variant)  # type: ignore[arg-type]

    def predicted(fractions: dict[str, float]) -> float:
        kept = {c.name: make(fractions[c.name]).kept(c.width) for c in costs}  # type: ignore
        return total(costs, make, kept)  # type: ignore[arg-type]

    assert predicted(dict(optimal.layers or {})) < predicted(dict.fromkeys("035", budget))


def test_the_predicted_variance_is_the_measured_one() -> None:
    model, make = network(), rad.DifferentSample
    costs = layer_costs(Trial(model, (X,), loss), make, "different_sample")
    predicted = total(costs, make, {cost.name: make(0.3).kept(cost.width) for cost in costs})
    exact, converted = gradient(model), rad.convert(model, make(0.3), seed=1)
    samples = torch.stack([gradient(converted) for _ in range(500)])
    check_mean_square(samples, exact, predicted)


@pytest.mark.parametrize("replacement", [True, False])
def test_no_other_division_is_better(replacement: bool) -> None:
    """Against every division of a small budget, up to what one step of a layer is worth."""

    def make(fraction: float) -> rad.SameSample:
        return rad.SameSample(fraction, replacement)

    layers = [
        LayerCost("a", 5, 9, 4, 2.0),
        LayerCost("b", 3, 7, 4, 0.3),
        LayerCost("c", 1, 11, 8, 7.0),
    ]
    curves = {layer.name: layer.curve(make) for layer in layers}
    every = itertools.product(*(range(layer.width) for layer in layers))
    choices = [at(curves, dict(zip(curves, places, strict=True))) for places in every]
    for limit in (60, 100, 150, 220, 300):
        found = divide(curves, limit, alike(curves, layers, make, limit))
        assert found is not None
        assert total_bytes(found) <= limit
        worth = max(cost.rows * cost.itemsize for cost in layers)
        smaller = (c for c in choices if total_bytes(c) <= limit - worth)
        assert total_variance(found) <= min(map(total_variance, smaller))


def curve(*variances: float, size: int = 1) -> list[Option]:
    return [Option(rad.Identity(), size * (i + 1), each) for i, each in enumerate(variances)]


def test_steps_go_where_the_variance_falls_most_for_a_byte() -> None:
    curves = {"a": curve(9, 5, 3, 2), "b": curve(9, 2, 1, size=2)}
    assert along(curves, 2) is None
    assert along(curves, 3) == {"a": 0, "b": 0}
    assert along(curves, 4) == {"a": 1, "b": 0}
    assert along(curves, 6) == {"a": 1, "b": 1}
    assert along(curves, 7) == {"a": 2, "b": 1}
    assert along(curves, 6, {"a": 0, "b": 2}) is None
    assert along(curves, 7, {"a": 0, "b": 2}) == {"a": 0, "b": 2}
    assert along(curves, 99) == {"a": 3, "b": 2}


def test_of_equal_steps_the_first_layer_takes_its_own() -> None:
    curves = {"b": curve(2, 1), "a": curve(2, 1)}
    assert along(curves, 3) == {"b": 1, "a": 0}


def test_a_layer_is_kept_exactly_where_a_jump_at_the_end_pays() -> None:
    """Single steps of `a` are worth less than those of `b`; all of them are worth more."""
    curves = {"a": curve(9, 8.9, 8.8, 0), "b": curve(3, 2, 1, 0.5)}
    assert along(curves, 5) == {"a": 0, "b": 3}
    assert divide(curves, 5) == {"a": curves["a"][3], "b": curves["b"][0]}


def test_a_start_is_left_where_it_ends_higher() -> None:
    curves = {"a": curve(9, 5, 3, 2.5), "b": curve(9, 2, 1, 0.5)}
    assert divide(curves, 4, {"a": 2, "b": 0}) == divide(curves, 4)
    assert divide(curves, 1) is None


def test_a_budget_below_one_number_a_row_is_not_met() -> None:
    curves = {"a": LayerCost("a", 5, 9, 4, 2.0).curve(rad.SameSample)}
    assert along(curves, 19) is None
    assert along(curves, 20) == {"a": 0}


def test_bytes_as_budget_are_used_and_not_exceeded() -> None:
    model = network()
    uniform = rad.fit(model, (X,), loss, 0.3)
    budget = uniform.memory.parameter_bytes + uniform.memory.saved_bytes + 17
    plan = rad.fit(model, (X,), loss, budget, allocation="optimal")
    converted = rad.convert(model, plan.sketch)
    used = parameter_bytes(model) + saved_bytes(lambda: loss(converted(X.clone())))
    assert budget - 16 * BATCH <= used <= budget


def test_recurrent_layers_share_with_the_others() -> None:
    """Within the uniform plan's bytes, and with no more predicted variance."""
    model = models.build("irnn", (1, 5, 4), 10, seed=0, hidden=12, std=0.3)
    x, y = torch.rand(6, 1, 5, 4), torch.randint(10, (6,))

    def of(out: Tensor) -> Tensor:
        return F.cross_entropy(out, y)

    uniform = rad.fit(model, (x,), of, 0.3)
    plan = rad.fit(model, (x,), of, 0.3, allocation="optimal")
    assert plan.memory.saved_bytes <= uniform.memory.saved_bytes
    assert plan.layers is not None
    assert set(plan.layers) == {"rnn", "output"}
    costs = layer_costs(Trial(model, (x,), of), rad.DifferentSample, "different_sample")
    kept = {cost.name: math.ceil(plan.layers[cost.name] * cost.width) for cost in costs}
    alike = {cost.name: math.ceil(0.3 * cost.width) for cost in costs}
    assert total(costs, rad.DifferentSample, kept) <= total(costs, rad.DifferentSample, alike)


def test_a_recurrent_layer_that_keeps_its_states_costs_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.output = nn.RNN(1, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.rnn(x)[1][0])  # type: ignore[no-any-return]

    trial = Trial(Net(), (torch.randn(4, 3, 1),), lambda out: out.square().sum())
    costs = layer_costs(trial, rad.DifferentSample, "different_sample")
    assert [cost.name for cost in costs] == ["output"]


def test_an_exact_recurrent_layer_that_keeps_its_first_state_too_stays_in_the_limit() -> None:
    """Kept exactly, a short sequence's states are one more than what is sketched of them."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.read = nn.RNN(1, 64, nonlinearity="relu"), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.rnn(x.transpose(0, 1))[1][-1])
            return out

    torch.manual_seed(0)
    model, x = Last(), torch.randn(50, 8, 1)
    of = lambda out: out.square().mean()  # noqa: E731
    uniform = rad.fit(model, (x,), of, 0.99, "different_sample")
    optimal = rad.fit(model, (x,), of, 0.99, "different_sample", allocation="optimal")
    assert optimal.memory.saved_bytes <= uniform.memory.saved_bytes


@pytest.mark.parametrize("width", [20, 90, 300])
def test_peaks_stay_in_the_limit(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(90, width), nn.ReLU(), nn.Linear(width, 5))
    x = torch.randn(60, 90)
    of = lambda out: out.square().mean()  # noqa: E731
    for budget in (0.1, 0.5):
        uniform = rad.fit(model, (x,), of, budget, "different_sample", kind="peak")
        optimal = rad.fit(
            model, (x,), of, budget, "different_sample", kind="peak", allocation="optimal"
        )
        assert optimal.memory.peak_bytes <= uniform.memory.peak_bytes
