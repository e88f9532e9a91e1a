"""Plans of what lies on the gradient's path."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.errors import UsageError
from rad.planning.path import PATHS
from rad.planning.probe import Trial
from rad.sketches import DitheredRounding, Identity, StochasticRounding

X = torch.randn(16, 32)


class Block(nn.Module):
    """A gated feedforward block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), Block(), Block())


def loss(output: Tensor) -> Tensor:
    return output.square().mean()


def bytes_of(path: DitheredRounding | None) -> int:
    return rad.fit(model(), X, loss, "1 MB", "stochastic_rounding", path=path).memory.saved_bytes


def test_a_path_keeps_less_and_the_plan_carries_it_out() -> None:
    path = DitheredRounding(4)
    plan = rad.fit(model(), X, loss, "1 MB", "stochastic_rounding", path=path)
    assert plan.path == path
    assert str(path) in plan.describe()
    assert plan.memory.saved_bytes < 0.6 * bytes_of(None)
    torch.manual_seed(0)
    converted = rad.convert(model(), plan)
    assert converted[1].norm.sketch == path
    assert converted[1].rad_calls.path == path
    assert rad.memory.saved_bytes(lambda: loss(converted(X))) == plan.memory.saved_bytes
    exact = rad.convert(model(), plan, path=Identity())
    assert exact[1].norm.sketch == Identity()


def test_the_path_with_the_least_error_that_fits_is_chosen() -> None:
    parameters = rad.memory.parameter_bytes(model())
    rich = rad.fit(model(), X, loss, "1 MB", "auto", path="auto")
    assert rich.path is None  # everything fits exactly
    assert rich.memory.saved_bytes <= 1_000_000 - parameters
    tight = rad.fit(model(), X, loss, f"{parameters + 12_000} B", "auto", path="auto")
    assert tight.path in PATHS[:-1]
    assert tight.memory.saved_bytes <= 12_000
    errors = {}
    for path in PATHS:
        try:
            plan = rad.fit(model(), X, loss, f"{parameters + 12_000} B", "auto", path=path)
        except UsageError:
            continue
        trial = Trial(model(), X, loss)
        trial.path = path
        errors[path] = trial.gradient_error(plan.sketch)
    assert tight.path == min(errors, key=errors.__getitem__)


def test_the_error_is_that_of_the_whole_gradient() -> None:
    trial = Trial(model().double(), X.double(), loss)
    trial.path = DitheredRounding(8)
    small = trial.gradient_error(Identity())
    trial.path = DitheredRounding(4)
    large = trial.gradient_error(Identity())
    assert 0 < 50 * small < large < 0.1  # steps are 17 times as long, their squares 289
    trial.path = None
    assert trial.gradient_error(Identity()) == 0
    assert trial.gradient_error(StochasticRounding(2)) > large


def test_what_fits_no_path_is_refused_with_the_least_that_does() -> None:
    with pytest.raises(UsageError, match="is too small") as refusal:
        rad.fit(model(), X, loss, "43 kB", "auto", path="auto")
    needed = int(str(refusal.value).rsplit("give at least ", 1)[1].split()[0])
    plan = rad.fit(model(), X, loss, needed, "auto", path="auto")
    assert plan.memory.parameter_bytes + plan.memory.saved_bytes <= needed


def test_a_path_that_would_bias_or_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="use DitheredRounding"):
        rad.fit(model(), X, loss, "1 MB", path=StochasticRounding(4))
    with pytest.raises(UsageError, match="None or 'auto'"):
        rad.fit(model(), X, loss, "1 MB", path=4)  # type: ignore[arg-type]
