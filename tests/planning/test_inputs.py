"""What people have: models that return their loss, a plan to convert by, names of classes."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.memory import saved_bytes


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Labelled(nn.Module):
    """Returns its loss as `form` says, where labels are given."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.form = form
        self.layers = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layers(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        forms: dict[str, Any] = {
            "scalar": loss,
            "dataclass": Output(loss, logits),
            "dict": {"loss": loss, "logits": logits},
            "mapping": UserDict(loss=loss, logits=logits),
        }
        return forms[self.form]


def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(16, 20), "labels": torch.randint(4, (16,))}


@pytest.mark.parametrize("form", ["scalar", "dataclass", "dict", "mapping"])
@pytest.mark.parametrize("variant", ["auto", "reduced_batch"])
def test_a_model_may_return_its_loss(form: str, variant: str) -> None:
    model, inputs = Labelled(form), batch()
    plan = rad.fit(model, inputs, budget=0.3, variant=variant)
    reference = rad.fit(Labelled("scalar"), tuple(inputs.values()), lambda loss: loss, 0.3, variant)
    if form != "mapping":  # torch.fx cannot follow it, so that the ReLU keeps its bits
        assert plan.memory == reference.memory
    assert plan.batch_size == reference.batch_size
    assert (plan.batch_size < 16) == (variant == "reduced_batch")


@pytest.mark.parametrize("form", ["scalar", "dataclass", "dict"])
def test_without_one_it_is_asked_for(form: str) -> None:
    with pytest.raises(UsageError, match="has none: give loss=") as error:
        rad.fit(Labelled(form), {"x": batch()["x"]}, budget=0.3)
    assert "\n" not in str(error.value)


def test_logits_are_no_loss() -> None:
    with pytest.raises(UsageError, match=r"tensor of shape \(16, 4\) and no loss"):
        rad.fit(nn.Linear(20, 4), batch()["x"], budget=0.3)


def test_a_plan_converts_a_model() -> None:
    model, inputs = Labelled("scalar"), batch()
    plan = rad.fit(model, inputs, budget=0.3, variant="auto")
    by_plan, by_sketch = rad.convert(model, plan, 3), rad.convert(model, plan.sketch, 3)
    found = []
    for converted in (by_plan, by_sketch):
        assert saved_bytes(lambda m=converted: m(**inputs)) == plan.memory.saved_bytes  # type: ignore[misc]
        converted(**inputs).backward()
        found.append([p.grad for p in converted.parameters()])
    assert all(map(torch.equal, *found))
    with pytest.raises(TypeError, match=r"must be a rad.sketches.Sketch, got float"):
        rad.convert(model, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_name", "name"),
    [("DifferentSample", "different_sample"), ("StochasticRounding", "stochastic_rounding")],
)
def test_a_variant_may_be_named_as_its_class(class_name: str, name: str) -> None:
    model, inputs = Labelled("scalar"), batch()
    plan = rad.fit(model, inputs, budget=0.3, variant=class_name)
    assert plan.variant == name
    assert plan.sketch == rad.fit(model, inputs, budget=0.3, variant=name).sketch
