"""`rad.fit` on the paper's networks and on networks it was not written for."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import parameter_bytes, peak_bytes, saved_bytes
from rad.sketches.base import ReducingSketch

BATCH = 4
SHAPES = {"feedforward": (1, 28, 28), "convnet": (3, 32, 32), "irnn": (1, 5, 4)}
LAYERS = {"feedforward": 4, "convnet": 5, "irnn": 2}
MODELS = {name: models.build(name, shape, 10, seed=0) for name, shape in SHAPES.items()}
Y = torch.randint(10, (BATCH,))


def loss(out: Tensor) -> Tensor:
    return F.cross_entropy(out, Y[: len(out)].clone())


def example(name: str) -> Tensor:
    return torch.rand(BATCH, *SHAPES[name])


def total(name: str, sketch: rad.Sketch, batch: int) -> int:
    converted, x = rad.convert(MODELS[name], sketch), example(name)
    return parameter_bytes(converted) + saved_bytes(lambda: loss(converted(x[:batch].clone())))


def next_larger(plan: rad.Plan, name: str) -> rad.Sketch | None:
    """The sketch at the next keep fraction at which any layer keeps one number more."""
    sketch = plan.sketch
    assert isinstance(sketch, ReducingSketch)
    widths = {"feedforward": (784, 300), "convnet": (1024, 256, 2048), "irnn": (100,)}[name]
    steps = [(sketch.kept(d) + 1 - 0.999) / d + 1e-12 for d in widths if sketch.kept(d) < d]
    return type(sketch)(min(steps)) if steps else None


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_budget_is_met_and_the_next_step_would_not_meet_it(
    name: str, data: st.DataObject
) -> None:
    variant = data.draw(st.sampled_from(["reduced_batch", "different_sample", "project"]))
    exact = variant == "reduced_batch"
    least = total(name, rad.Identity() if exact else rad.SameSample(1e-9), 1 if exact else BATCH)
    most = total(name, rad.Identity() if exact else rad.SameSample(1.0), BATCH)
    budget = data.draw(st.integers(least, most - 1))
    plan = rad.fit(MODELS[name], (example(name),), loss, budget, variant)
    used = total(name, plan.sketch, plan.batch_size)  # type: ignore[arg-type]
    assert used == plan.memory.parameter_bytes + plan.memory.saved_bytes <= budget
    if exact:
        assert total(name, rad.Identity(), plan.batch_size + 1) > budget
    else:
        larger = next_larger(plan, name)
        assert larger is not None
        assert total(name, larger, BATCH) > budget


@pytest.mark.parametrize("variant", ["different_sample", "reduced_batch"])
def test_peak_budgets_are_met(variant: str) -> None:
    model, x = MODELS["convnet"], example("convnet")
    full = rad.fit(model, (x,), loss, variant="baseline", kind="peak")
    least = full.memory.parameter_bytes + int(0.95 * full.memory.peak_bytes)
    plan = rad.fit(model, (x,), loss, least, variant, kind="peak")
    converted = rad.convert(model, plan.sketch)
    peak = peak_bytes(lambda: loss(converted(x[: plan.batch_size].clone())).backward())
    assert parameter_bytes(model) + peak <= least * 1.01
    assert plan.memory.peak_bytes + plan.memory.parameter_bytes <= least
    assert plan.kind == "peak"
    with pytest.raises(UsageError, match="at its peak"):
        rad.fit(model, (x,), loss, plan.memory.parameter_bytes, variant, kind="peak")


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_networks_it_was_not_written_for(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    model.classifier = nn.Sequential(nn.Linear(9216 if name == "alexnet" else 25088, 10))
    x, y = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])

    def mean_loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, y[: len(out)].clone())

    used = {}
    for budget in (0.1, 1.0):
        plan = rad.fit(model, (x,), mean_loss, budget)
        used[budget] = plan.memory.parameter_bytes + plan.memory.saved_bytes
    between = (used[0.1] + used[1.0]) // 2
    plan = rad.fit(model, (x,), mean_loss, between)
    converted = rad.convert(model, plan.sketch)
    measured = saved_bytes(lambda: mean_loss(converted(x.clone())))
    assert parameter_bytes(converted) + measured <= between
    assert measured > 0.95 * (between - parameter_bytes(converted))
    words = str(plan)
    assert words.count("DifferentSample") == sum(
        isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()
    )
    assert "bits per output" in words
    audit = rad.audit(converted, lambda: mean_loss(converted(x.clone())))
    assert audit.unexpected == ()


def test_a_plan_says_what_it_cannot_sketch() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.LSTM(30, 5))
    plan = rad.fit(model, (torch.rand(4, 20),), lambda out: out[0].sum(), 0.5)
    assert "no RAD layer for this type" in str(plan)
    with pytest.raises(UsageError, match="nothing to sketch"):
        rad.fit(nn.Sequential(nn.LogSigmoid()), (torch.rand(4, 20),), lambda out: out.sum(), 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "virtual"}, "kind"),
        ({"allocation": "best"}, "allocation"),
        ({"variant": "sampled"}, "variant"),
        ({"example": ()}, "batch axis"),
        ({"example": (torch.rand(0, 1, 28, 28),)}, "empty"),
        ({"example": (torch.rand(3, 1, 28, 28), torch.rand(4))}, "batch axis"),
    ],
)
def test_bad_arguments(change: dict[str, object], words: str) -> None:
    given = {"example": (example("feedforward"),), "loss": loss, "budget": 0.1} | change
    with pytest.raises(UsageError, match=words):
        rad.fit(MODELS["feedforward"], **given)  # type: ignore[arg-type]


def partly_evaluated() -> nn.Sequential:
    """Of a network for (B, 3, 12, 12), the normalisation and the head are in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(800, 10),
    )
    for place in (1, 2, 4, 6):
        model[place].eval()
    return model


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "auto"},
        {"variant": "different_sample"},
        {"variant": "different_sample", "allocation": "optimal"},
        {"variant": "stochastic_rounding"},
        {"variant": "reduced_batch"},
    ],
    ids=str,
)
def test_what_is_in_evaluation_mode_is_planned_so(change: dict[str, object]) -> None:
    model, x = partly_evaluated(), torch.rand(BATCH, 3, 12, 12)
    modes = [module.training for module in model.modules()]
    full = rad.fit(model, (x,), loss, variant="baseline").memory
    budget = full.parameter_bytes + int(0.8 * full.saved_bytes)
    plan = rad.fit(model, (x,), loss, budget, **change)  # type: ignore[arg-type]
    converted = rad.convert(model, plan.sketch)
    inputs = x[: plan.batch_size].clone()
    used = parameter_bytes(model) + saved_bytes(lambda: loss(converted(inputs)))
    assert used == plan.memory.parameter_bytes + plan.memory.saved_bytes <= budget
    assert [module.training for module in model.modules()] == modes
    if plan.layers is not None:
        assert set(plan.layers) == {"0", "3"}


def test_a_model_that_sketches_nothing_as_it_is_is_refused_with_the_way_out() -> None:
    model, x = partly_evaluated(), torch.rand(BATCH, 3, 12, 12)
    for variant in ("different_sample", "auto", "reduced_batch"):
        with pytest.raises(UsageError, match=r"evaluation mode.*model\.train\(\)"):
            rad.fit(partly_evaluated().eval(), (x,), loss, 0.5, variant)
    model[0].requires_grad_(False)
    model[3].eval()
    for variant in ("different_sample", "auto", "stochastic_rounding"):
        with pytest.raises(UsageError, match="frozen or in evaluation mode"):
            rad.fit(model, (x,), loss, 0.5, variant)
