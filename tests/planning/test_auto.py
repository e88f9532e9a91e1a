"""`variant=auto`: its closed forms, its search, its budget."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from unbiased import check_mean_square

import rad
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.planning.auto import choose, fewest_bytes, layer_options, menu
from rad.planning.greedy import Option, cheapest_variance
from rad.planning.probe import Sketches, Trial
from rad.planning.variants import build, fit

BATCH = 12
Y = torch.randint(3, (BATCH,))


def loss(out: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(1), Y[: len(out)].clone())


class Last(nn.Module):
    """Two recurrent layers; the second's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 7, num_layers=2, nonlinearity="relu", batch_first=True)
        self.output = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.rnn(x)[0][:, -1])  # type: ignore[no-any-return]


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")
    return {
        "recurrent": (Last(), torch.randn(BATCH, 6, 2)),
        "linear": (
            nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)),
            torch.randn(BATCH, 40),
        ),
        "conv": (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, stride=2, padding=1),
                nn.ReLU(),
                grouped,
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64, 3),
            ),
            torch.randn(BATCH, 2, 8, 8),
        ),
    }


@pytest.mark.parametrize("name", ["linear", "conv", "recurrent"])
def test_predictions_are_the_layers_closed_forms(name: str) -> None:
    model, x = networks()[name]
    trial = Trial(model.double(), (x.double(),), loss)
    calls = trial.inputs_and_gradients()
    for layer, options in layer_options(trial).items():
        for option in options:
            expected = sum(
                trial.layers[layer].weight_grad_variance(x, g, option.sketch).item()
                for x, g in calls[layer]
            )
            assert option.variance == pytest.approx(expected, rel=1e-9)
    offered = {option.sketch for option in options}
    left_out = {s for s in menu() if isinstance(s, rad.RotatedRounding) and name == "conv"}
    assert offered == set(menu()) - left_out


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_combination_is_much_better(data: st.DataObject) -> None:
    """Within one step along a hull of the best; and the best where everything fits."""
    pair = st.tuples(st.integers(1, 40), st.floats(0, 10))
    drawn = data.draw(st.lists(st.lists(pair, min_size=1, max_size=5), min_size=1, max_size=3))
    options = {
        str(i): [Option(rad.Identity(), size, variance) for size, variance in layer]
        for i, layer in enumerate(drawn)
    }
    limit = data.draw(st.integers(1, 130))
    chosen = cheapest_variance(options, limit)
    feasible = [
        combination
        for combination in itertools.product(*options.values())
        if sum(option.nbytes for option in combination) <= limit
    ]
    if chosen is None:
        assert not feasible
        return
    assert sum(option.nbytes for option in chosen.values()) <= limit
    best = min(sum(option.variance for option in combination) for combination in feasible)
    found = sum(option.variance for option in chosen.values())
    assert found >= best - 1e-9
    widest = max(
        max(o.variance for o in layer) - min(o.variance for o in layer)
        for layer in options.values()
    )
    assert found <= best + widest + 1e-9
    if sum(max(o.nbytes for o in layer) for layer in options.values()) <= limit:
        assert found == pytest.approx(best)


@pytest.mark.parametrize("name", ["linear", "conv", "recurrent"])
@pytest.mark.parametrize("budget", [0.2, 0.05])
def test_auto_keeps_its_budget_and_beats_every_other(name: str, budget: float) -> None:
    model, x = networks()[name]
    trial = Trial(model, (x,), loss)
    table = layer_options(trial)
    limit = fit(model, (x,), loss, budget, "different_sample").memory.saved_bytes
    built = build(model, (x,), loss, "auto", budget)
    plan = built.plan
    measured = saved_bytes(lambda: loss(built.model(x)))
    assert measured == plan.memory.saved_bytes <= limit
    assert isinstance(plan.sketch, dict)
    variances = {layer: {o.sketch: o.variance for o in found} for layer, found in table.items()}
    of_auto = sum(variances[layer][sketch] for layer, sketch in plan.sketch.items())
    for sketch in menu():
        if sketch == rad.Identity() or any(sketch not in by for by in variances.values()):
            continue
        converted = rad.convert(model, sketch)
        if saved_bytes(lambda c=converted: loss(c(x))) <= limit:  # type: ignore[misc]
            assert of_auto <= 1.0001 * sum(by[sketch] for by in variances.values()), sketch
    assert plan.layers == {layer: repr(sketch) for layer, sketch in plan.sketch.items()}
    assert "least predicted gradient variance" in str(plan)


def test_what_a_recurrent_layer_adds_is_what_is_measured() -> None:
    """The options of auto, summed over steps and weights, against gradients of many keys."""
    torch.manual_seed(0)
    model, x = Last().double(), torch.randn(BATCH, 6, 2, dtype=torch.float64)
    options = layer_options(Trial(model, (x,), loss))["rnn"]
    names = [name for name, _ in model.named_parameters() if name.startswith("rnn.weight")]

    def gradient(converted: nn.Module) -> Tensor:
        converted.zero_grad()
        loss(converted(x)).backward()
        grads = [converted.get_parameter(name).grad for name in names]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    exact = gradient(model)
    for sketch in (
        rad.StochasticRounding(1),
        rad.DitheredRounding(2, zero_code=True),
        rad.DifferentSample(0.2, replacement=False),
        rad.SampledRounding(0.5, 1),
    ):
        converted = rad.convert(model, {"rnn": sketch}, seed=3)
        samples = torch.stack([gradient(converted) for _ in range(500)])  # 360 are needed
        (expected,) = (o.variance for o in options if o.sketch == sketch)
        check_mean_square(samples, exact, expected)


def test_what_fits_is_found_where_bytes_depend_on_the_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As peaks may, everything but one sketch takes more than its bytes, by a million."""
    model, x = networks()["linear"]
    trial = Trial(model, (x,), loss)
    cheap, measure, calls = rad.StochasticRounding(2), Trial.total_bytes, []

    def dearer(self: Trial, sketches: Sketches, batch: int) -> int:
        calls.append(sketches)
        alike = isinstance(sketches, dict) and set(sketches.values()) == {cheap}
        saved = Trial(model, (x,), loss)
        return measure(saved, sketches, batch) + (0 if alike else 10**6)

    limit = measure(trial, cheap, BATCH)
    monkeypatch.setattr(Trial, "total_bytes", dearer)
    monkeypatch.setattr(trial, "kind", "peak")  # of which all sketches are tried
    choice = choose(trial, limit)
    assert choice is not None
    assert set(choice.sketches.values()) == {cheap}
    assert choose(trial, limit - 1) is None
    assert fewest_bytes(trial) == limit
    assert len(calls) < 1000


@pytest.mark.parametrize("budget", ["exact", 0.3])
def test_peak_budgets_are_met_wherever_an_option_meets_them(budget: str | float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(90, 60), nn.ReLU(), nn.Linear(60, 5))
    x = torch.randn(BATCH, 90)
    trial = Trial(model, (x,), loss, "peak")
    exact = trial.total_bytes(rad.Identity(), BATCH)
    of_auto = exact if budget == "exact" else budget
    plan = fit(model, (x,), loss, of_auto, "auto", kind="peak")
    limit = exact if budget == "exact" else trial.total_bytes(rad.DifferentSample(0.3), BATCH)
    assert plan.memory.parameter_bytes + plan.memory.peak_bytes <= limit


@pytest.mark.parametrize("frozen", [0, 2])
@pytest.mark.parametrize("how", ["auto", "optimal"])
def test_frozen_layers_keep_nothing_and_are_left_out(frozen: int, how: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)]
    model, x = nn.Sequential(*layers), torch.randn(BATCH, 30)
    model[frozen].requires_grad_(False)
    if how == "auto":
        plan = fit(model, (x,), loss, 0.5, "auto")
    else:
        plan = fit(model, (x,), loss, 0.5, "different_sample", allocation="optimal")
    assert plan.layers is not None
    assert str(frozen) not in plan.layers
    assert len(plan.layers) == 2


def test_auto_with_everything_keeps_everything() -> None:
    model, x = networks()["linear"]
    plan = fit(model, (x,), loss, "full", "auto")
    assert plan.sketch == rad.Identity()


def test_what_auto_cannot_predict_is_refused_with_a_way_out() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.unread = nn.Linear(40, 3), nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.unread(x)
            return self.read(x)  # type: ignore[no-any-return]

    model, x = networks()["linear"]
    with pytest.raises(UsageError, match=r"'unread'.*variant=stochastic_rounding"):
        fit(Unread(), (x,), loss, 0.5, "auto")
    with pytest.raises(UsageError, match="give at least"):
        fit(model, (x,), loss, parameter_bytes(model), "auto")


@pytest.mark.parametrize("how", ["auto", "optimal"])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_plan_does_not_depend_on_the_size_of_the_loss(name: str, how: str) -> None:
    model, x = networks()[name]
    options = {"variant": "auto"} if how == "auto" else {"allocation": "optimal"}
    plans = [
        fit(model, (x,), lambda out, scale=scale: scale * loss(out), 0.2, **options)  # type: ignore
        for scale in (2.0**-73, 1.0, 2.0**73)
    ]
    assert plans[0].sketch == plans[1].sketch == plans[2].sketch
    assert plans[0].memory.saved_bytes == plans[1].memory.saved_bytes
    for plan in plans:
        assert "inf" not in str(plan.reason)
        assert "variance, 0;" not in str(plan.reason)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{"variant": "auto"}, {"allocation": "optimal"}], ids=str)
def test_gradients_that_tell_nothing_are_refused(scale: float, options: dict[str, str]) -> None:
    words = "not finite at layer" if scale else "zero in every layer"
    for model, x in networks().values():
        with pytest.raises(UsageError, match=words):
            fit(model, (x,), lambda out: scale * out.sum(), 0.2, **options)  # type: ignore


def test_a_layer_before_a_branch_that_starts_at_zero_gets_what_is_left() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3)), torch.randn(BATCH, 40)
    nn.init.zeros_(model[1].weight)
    plan = fit(model, (x,), loss, 0.5, "auto")
    assert isinstance(plan.sketch, dict)
    kept = plan.sketch["0"].nbytes((BATCH, 40), torch.float32)
    assert kept > rad.DifferentSample(0.003).nbytes((BATCH, 40), torch.float32)


class Past(nn.Module):
    """Calls one of its layers by its forward: no hook sees that."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[1](self.inner[0].forward(self.inner[0](x)))


def test_a_use_that_cannot_be_watched_is_refused_by_name() -> None:
    x = torch.randn(BATCH, 40)
    for plan in ({"variant": "auto"}, {"allocation": "optimal"}):
        with pytest.raises(UsageError, match=r"layer 'inner\.0' is used past its call"):
            rad.fit(Past(), x, lambda out: out.square().mean(), 0.5, **plan)
    rad.fit(Past(), x, lambda out: out.square().mean(), 0.5, variant="different_sample")
