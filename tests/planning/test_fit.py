"""`rad.fit` on the paper's networks and on networks it was not written for."""

import re
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

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
    least = full.memory.parameter_bytes + int(0.99 * full.memory.peak_bytes)
    plan = rad.fit(model, (x,), loss, least, variant, kind="peak")
    converted = rad.convert(model, plan.sketch)
    for _ in range(3):  # each with draws of its own
        converted.zero_grad()
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
    side = 64 if name == "alexnet" else 32
    x, y = torch.rand(2, 3, side, side), torch.tensor([0, 1])

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
    for kind in (nn.Conv2d, nn.Linear):
        count = sum(isinstance(module, kind) for module in model.modules())
        assert re.search(rf"{count} x {kind.__name__}, .*: DifferentSample", words)
    assert "bits per output" in words
    audit = rad.audit(converted, lambda: mean_loss(converted(x.clone())))
    assert audit.unexpected == ()


def test_a_plan_says_what_it_cannot_sketch() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.PReLU())
    plan = rad.fit(model, (torch.rand(4, 20),), lambda out: out.sum(), 0.5)
    assert "no RAD layer for this type" in str(plan)
    with pytest.raises(UsageError, match="nothing to sketch"):
        rad.fit(nn.Sequential(nn.Softmax(1)), (torch.rand(4, 20),), lambda out: out.sum(), 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "virtual"}, "kind"),
        ({"allocation": "best"}, "allocation"),
        ({"variant": "sampled"}, "variant"),
        ({"example": ()}, "batch axis"),
        ({"example": (torch.rand(0, 1, 28, 28),)}, "empty"),
        ({"example": (3, torch.tensor(1.0), None)}, "batch axis"),
        ({"loss": lambda out: out}, "no scalar tensor: give its mean"),
        ({"loss": lambda out: out.detach().sum()}, "requires_grad_"),
        ({"loss": lambda out: out.sum().item()}, "is float, no scalar tensor"),
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
    budget = full.parameter_bytes + int(0.95 * full.saved_bytes)
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


@dataclass
class Output:
    """As Hugging Face's models return it."""

    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


class Flexible(nn.Module):
    """Takes a batch, and other things beside it, by place or name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10)

    def forward(
        self,
        x: Tensor,
        scale: float = 1.0,
        bias: Tensor | None = None,
        more: dict[str, Tensor] | None = None,
        *,
        flag: bool = False,
    ) -> Output:
        if more is not None:
            x = x + more["shift"]
        hidden = self.first(x) * scale
        if bias is not None:
            hidden = hidden + bias
        assert not flag or more is None or len(more["shift"]) == len(x)
        return Output(self.second(self.act(hidden)), (hidden,))


X, SHIFT, BIAS = torch.rand(BATCH, 12), torch.rand(BATCH, 12), torch.rand(20)
EXAMPLES: dict[str, Any] = {
    "tensor": X,
    "tuple": (X,),
    "list": [X, 2.0],
    "none": (X, 1.0, None, None),
    "tensors of other sizes": (X, torch.tensor(2.0), BIAS),
    "nest": (X, 1, BIAS, {"shift": SHIFT}),
    "keywords": {"x": X, "flag": True},
    "keywords and nest": {"x": X, "more": {"shift": SHIFT}, "flag": True},
    "mapping": UserDict(x=X, bias=BIAS),
}


@pytest.mark.parametrize("given", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_examples_as_people_pass_them(given: Any) -> None:
    model = Flexible()

    def of_output(out: Output) -> Tensor:
        return F.cross_entropy(out.logits, Y[: len(out.logits)].clone())

    for variant in ("different_sample", "auto"):
        plan = rad.fit(model, given, of_output, 0.5, variant)
        assert plan.batch_size == BATCH
        assert plan.memory.saved_bytes > 0
    full = rad.fit(model, given, of_output, variant="baseline").memory
    budget = full.parameter_bytes + full.saved_bytes // 2
    assert 1 <= rad.fit(model, given, of_output, budget, "reduced_batch").batch_size < BATCH


def test_what_a_dataclass_holds_is_measured() -> None:
    model = Flexible()
    assert saved_bytes(lambda: model(X)) == saved_bytes(lambda: model(X).logits) > 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, "is the class Linear: give an instance"),
        (lambda x: x, r"is a function: give a torch\.nn\.Module"),
        (nn.Sequential(nn.LazyLinear(3)), "layer '0' .* is lazy"),
        (nn.Sequential(nn.Linear(12, 3), nn.LazyBatchNorm1d()), "layer '1' .* is lazy"),
        (nn.Linear(12, 3, device="meta"), "meta device"),
        (nn.Linear(12, 10).requires_grad_(False), "requires_grad_"),
    ],
)
@pytest.mark.parametrize("variant", ["different_sample", "baseline"])
def test_what_is_no_model_to_measure_is_refused(model: Any, words: str, variant: str) -> None:
    with pytest.raises(UsageError, match=words):
        rad.fit(model, X, loss, 0.5, variant)


def test_fake_tensors_are_refused() -> None:
    with FakeTensorMode():
        fake, x = nn.Linear(12, 3), torch.rand(BATCH, 12)
        with pytest.raises(UsageError, match="FakeTensorMode"):
            rad.fit(nn.Linear(12, 3), X, loss, 0.5)
    for model, inputs in ((fake, X), (nn.Linear(12, 3), x)):
        with pytest.raises(UsageError, match="FakeTensorMode"):
            rad.fit(model, inputs, loss, 0.5)


def test_the_reduced_batch_is_one_that_normalisation_runs_on() -> None:
    model = nn.Sequential(nn.Linear(12, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10))
    least = rad.fit(model, X[:2], loss, variant="baseline").memory
    small = least.parameter_bytes + least.saved_bytes
    assert rad.fit(model, X, loss, small, "reduced_batch").batch_size == 2
    with pytest.raises(UsageError, match="a batch of 2 needs"):
        rad.fit(model, X, loss, small - 1, "reduced_batch")


def test_a_loss_that_takes_no_smaller_batch_is_refused() -> None:
    model, x, y = nn.Linear(12, 10), torch.rand(8, 12), torch.randint(10, (8,))
    with pytest.raises(UsageError, match=r"out, y\[: len\(out\)\]"):
        rad.fit(model, x, lambda out: F.cross_entropy(out, y), 0.9, "reduced_batch")


def test_gradients_of_what_is_not_the_model_stay_away() -> None:
    torch.manual_seed(0)
    model, head, encoder = nn.Linear(20, 10), nn.Linear(10, 4), nn.Linear(20, 20)
    x = torch.randn(8, 20, requires_grad=True)
    for example in (x, encoder(x)):
        rad.fit(model, example, lambda out: head(out).square().mean(), 0.5)
    leaves = [x, *head.parameters(), *encoder.parameters(), *model.parameters()]
    assert all(leaf.grad is None for leaf in leaves)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(20, 10)
    prune.l1_unstructured(model, "weight", 0.5)
    model(torch.randn(8, 20))
    with pytest.raises(UsageError, match="cannot be copied"):
        rad.fit(model, torch.randn(8, 20), lambda out: out.square().mean(), 0.5)
