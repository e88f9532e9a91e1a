"""`rad.convert` with a budget: fit and convert in one call."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import parameter_bytes, peak_bytes, saved_bytes

X, Y = torch.randn(32, 20), torch.randint(4, (32,))


class Labelled(nn.Module):
    """Returns its loss where labels are given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(20, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 4)
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits if labels is None else F.cross_entropy(logits, labels)


def loss(out: Tensor) -> Tensor:
    return F.cross_entropy(out, Y[: len(out)].clone())


def total(model: nn.Module) -> int:
    return parameter_bytes(model) + saved_bytes(lambda: loss(model(X)))


def budget_of(share: float) -> int:
    """Bytes: those of the parameters, and a share of what is kept beside the least."""
    least, most = (total(rad.convert(Labelled(), sketch)) for sketch in
                   (rad.SameSample(1e-9), rad.Identity()))  # fmt: skip
    return least + int(share * (most - least))


@pytest.mark.parametrize("variant", ["auto", "different_sample", "StochasticRounding"])
def test_a_budget_is_met_as_by_fit_and_convert(variant: str) -> None:
    model, budget = Labelled(), budget_of(0.5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    converted = rad.convert(model, budget=budget, example=X, loss=loss, variant=variant, seed=3)
    path = "auto" if variant == "auto" else None
    by_hand = rad.convert(model, rad.fit(model, X, loss, budget, variant, path=path), seed=3)
    for each in (converted, by_hand):
        loss(each(X)).backward()
    for one, other in zip(converted.parameters(), by_hand.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert total(converted) <= budget < total(model)
    assert not any(isinstance(module, rad.nn.Linear) for module in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_by_default_auto_chooses_and_the_model_returns_its_loss() -> None:
    model, budget = Labelled(), budget_of(0.4)
    inputs = {"x": X, "labels": Y}
    converted = rad.convert(model, budget=f"{budget} B", example=inputs, inplace=True)
    assert converted is model
    assert parameter_bytes(model) + saved_bytes(lambda: model(**inputs)) <= budget
    plan = rad.fit(Labelled(), inputs, budget=budget, variant="auto", path="auto")
    assert isinstance(plan.sketch, dict)
    chosen = {name: model.get_submodule(name).sketch for name in plan.sketch}
    assert chosen == plan.sketch


def test_what_a_path_keeps_less_the_others_may_keep_more() -> None:
    kept, budget = {}, budget_of(0.4)
    for path in (None, rad.DitheredRounding(4)):
        options: dict[str, Any] = {"variant": "different_sample", "path": path}
        converted = rad.convert(Labelled(), budget=budget, example=X, loss=loss, **options)
        assert total(converted) <= budget
        kept[path is None] = converted.get_submodule("layers.0").sketch.keep_fraction  # type: ignore[union-attr]
    assert kept[False] > kept[True]


def test_a_budget_of_peak_bytes_is_met() -> None:
    model = Labelled()
    full = rad.fit(model, X, loss, variant="baseline", kind="peak").memory
    budget = full.parameter_bytes + int(0.97 * full.peak_bytes)
    options: dict[str, Any] = {"variant": "different_sample", "kind": "peak"}
    converted = rad.convert(model, budget=budget, example=X, loss=loss, **options)
    peak = peak_bytes(lambda: loss(converted(X.clone())).backward())
    assert parameter_bytes(model) + peak <= 1.01 * budget


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(mode: Any) -> None:
    with mode():
        converted = rad.convert(
            Labelled(), budget=0.4, example=X.clone(), loss=loss, path=rad.DitheredRounding(4)
        )
    loss(converted(X)).backward()
    assert all(p.grad is not None for p in converted.parameters())


SKETCH = rad.SameSample(0.5)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, r"rad\.StochasticRounding\(4\), or budget= and example=.*neither is given"),
    "both": ({"sketch": SKETCH, "budget": 0.5, "example": X}, "both are given"),
    "no example": ({"budget": "6 GB"}, "budget= needs example="),
    "no budget": ({"sketch": SKETCH, "example": X}, "go with budget="),
    "auto without budget": ({"sketch": SKETCH, "path": "auto"}, "path='auto' goes with budget="),
    "no functions": (
        {"budget": 0.5, "example": X, "loss": loss, "functions": False},
        "functions=False goes with a sketch",
    ),
    "loss without budget": ({"sketch": SKETCH, "loss": loss}, "go with budget="),
    "variant without budget": ({"sketch": SKETCH, "variant": "project"}, "go with budget="),
    "kind without budget": ({"sketch": SKETCH, "kind": "peak"}, "go with budget="),
    "no loss": ({"budget": 0.5, "example": X}, r"tensor of shape \(32, 4\).*loss=lambda out: F\."),
    "smaller batch": (
        {"budget": 0.5, "example": X, "loss": loss, "variant": "reduced_batch"},
        "variant=reduced_batch keeps everything.*rad.fit",
    ),
    "everything": (
        {"budget": 0.5, "example": X, "loss": loss, "variant": "baseline"},
        "choose one of .*same_sample.*auto",
    ),
    "too small": ({"budget": 100, "example": X, "loss": loss}, "too small: parameters alone"),
    "unread": ({"budget": "6 apples", "example": X, "loss": loss}, "not a memory budget"),
    "bad path": (
        {"budget": 0.5, "example": X, "loss": loss, "path": SKETCH},
        "DitheredRounding",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_what_says_too_little_or_too_much_is_refused_in_one_line(
    arguments: dict[str, Any], words: str
) -> None:
    model = Labelled()
    with pytest.raises(UsageError, match=words) as error:
        rad.convert(model, inplace=True, **arguments)
    assert "\n" not in str(error.value)
    assert not any(isinstance(module, rad.nn.Linear) for module in model.modules())


def test_what_is_no_model_is_refused() -> None:
    for model in (nn.Linear, lambda x: x):
        for path in (None, rad.DitheredRounding(4)):
            with pytest.raises(UsageError, match=r"give an instance|give a torch"):
                rad.convert(model, budget=0.5, example=X, loss=loss, path=path)  # type: ignore[arg-type]


def test_a_warning_points_at_the_call() -> None:
    model = Labelled()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="inplace=True") as seen:
        rad.convert(model, SKETCH)
    assert [each.filename for each in seen] == [__file__]
    assert optimizer.param_groups
