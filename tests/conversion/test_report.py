import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rad
from rad.conversion.report import TOGETHER, UNTRACED
from rad.sketches import DitheredRounding, SameSample


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again, self.calls = self.layer, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = F.relu(self.layer(x)).relu() + x.reshape(-1, 4)
        return torch.matmul(x, x.t())


def test_functional_calls_are_left_with_what_to_do() -> None:
    model = nn.Sequential(Calling(), nn.ReLU())
    report = rad.report(rad.convert(model, SameSample(0.5), functions=False))
    left = {(row.name, row.kind): row.keeps for row in report.left}
    assert left.keys() == {("0", "relu() (2 calls)"), ("0", "matmul()")}
    assert "torch.nn.ReLU module" in left["0", "relu() (2 calls)"]
    assert "no RAD layer" in left["0", "matmul()"]
    assert not report.note
    assert model[0].calls == 0


def test_functional_calls_that_are_served_say_what_they_keep() -> None:
    converted = rad.convert(nn.Sequential(Calling()), SameSample(0.5), path=DitheredRounding(4))
    replaced = {(row.name, row.kind): row.keeps for row in rad.report(converted).replaced}
    assert replaced["0", "relu() (2 calls)"] == "1 bit per unit"
    assert replaced["0", "matmul()"] == f"{DitheredRounding(4)} of its factors"
    assert not rad.report(converted).left


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = 0.5
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = (2 * x + 1) * self.constant
        x = torch.div(x.mul(3), x.shape[-1] ** 0.5) / x.size(0)
        x *= 2
        return 1 / x + x**2 + x * self.weight + x / x.sum()


def test_what_keeps_but_a_number_is_not_listed() -> None:
    left = [row.kind for row in rad.report(nn.Sequential(Scaling())).left]
    assert left == ["Scaling", "truediv() (2 calls)", "pow()", "mul()"]
    x = torch.rand(3, 4, requires_grad=True)
    assert rad.memory.saved_bytes(lambda: (2 * x + 1).mul(3) / x.shape[-1] ** 0.5) == 0


def test_a_model_that_cannot_be_traced_is_said_to_be() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.sum() > 0 else x

    assert UNTRACED in str(rad.report(nn.Sequential(Branching()))).splitlines()
    assert rad.report(nn.Linear(3, 3)).note == ""


def test_every_name_of_a_module_has_a_row() -> None:
    report = rad.report(rad.convert(Calling(), SameSample(0.5)))
    assert [row.name for row in report.replaced] == ["layer", "again", ""]
    assert "same module as 'layer'" in report.replaced[1].keeps


def test_a_parametrized_layer_sketches_and_is_said_to() -> None:
    for parametrized_first in (True, False):
        model: nn.Module = nn.Sequential(nn.Linear(4, 4))
        if parametrized_first:
            parametrizations.weight_norm(model[0])
        model = rad.convert(model, SameSample(0.5))
        if not parametrized_first:
            parametrizations.weight_norm(model[0])
        (row,) = rad.report(model).replaced
        assert (row.name, row.kind) == ("0", "Linear")
        assert row.keeps == str(SameSample(0.5))
        assert int(model[0].calls) == 0
        model(torch.randn(2, 4))
        assert int(model[0].calls) == 1


def test_only_subclasses_are_called_that() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input)

    plain, own = rad.report(nn.Sequential(nn.Linear(3, 3), Own(3, 3))).left
    assert "convert the model" in plain.keeps
    assert "subclass" in own.keeps


def test_sequences_that_run_layers_together_are_named() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = nn.Sequential(nn.ReLU(), inner, nn.Sequential(nn.ReLU()))
    assert rad.report(rad.convert(model, SameSample(0.5))).note == f"{TOGETHER}1"
    assert rad.report(rad.convert(inner, SameSample(0.5))).note == f"{TOGETHER}(model)"
