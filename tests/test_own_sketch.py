"""A sketch of a user's own reaches every layer, planning and the PDE, and changes no file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from unbiased import check_mean_square, check_unbiased, draws

import rad
from rad.draws.reference import make_key
from rad.errors import UsageError
from rad.pde import ReactionDiffusion, control_loss
from rad.pde.plan import plan
from rad.sketches import registry

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own() -> Iterator[rad.Sketch]:
    """Registered for these tests alone."""
    from own_sketch import PowersOfTwo

    known = registry.SketchKind("powers_of_two", PowersOfTwo, menu=lambda: [PowersOfTwo()])
    registry._KINDS.setdefault("powers_of_two", known)
    yield PowersOfTwo()
    del registry._KINDS["powers_of_two"]


LAYERS = {
    "linear": (lambda: nn.Linear(7, 3), (5, 7)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 2, 5, 4)),
    "rnn": (lambda: nn.RNN(4, 3, nonlinearity="relu"), (6, 2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_trains_a_layer(name: str, own: rad.Sketch) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain, x = make().double(), torch.randn(shape, dtype=torch.float64)
    layer = rad.convert(plain, own)

    def gradient(model: nn.Module) -> Tensor:
        output = model(x)
        output = output[0] if isinstance(output, tuple) else output
        weights = [p for n, p in model.named_parameters() if "weight" in n]
        found = torch.autograd.grad(output.square().sum(), weights)
        return torch.cat([grad.flatten() for grad in found])

    samples = torch.stack([gradient(layer) for _ in range(1000)])
    check_unbiased(samples, gradient(plain))


def test_its_variance_is_that_of_the_closed_form(own: rad.Sketch) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    layer = rad.convert(nn.Linear(7, 3).double(), own)
    samples = draws(lambda key: own.contract(grad, own.compress(x, key), (5, 7), key), 20_000)
    check_mean_square(samples, grad.t() @ x, layer.weight_grad_variance(x, grad, own).item())


def test_it_is_planned(own: rad.Sketch) -> None:
    model, x = nn.Sequential(nn.Linear(90, 60), nn.ReLU(), nn.Linear(60, 5)), torch.randn(64, 90)
    loss = lambda out: out.square().mean()  # noqa: E731
    planned = rad.fit(model, x, loss, "50 kB", "powers_of_two")
    assert planned.sketch == own
    assert planned.memory.parameter_bytes + planned.memory.saved_bytes <= 50_000
    with pytest.raises(UsageError, match="powers_of_two needs"):
        rad.fit(model, x, loss, "30 kB", "powers_of_two")
    rad.fit(model, x, loss, "40 kB", "auto")


def test_it_trains_the_pde(own: rad.Sketch) -> None:
    problem = ReactionDiffusion(points=9, steps=40, dt=0.01, diffusion=0.3, dtype=torch.float64)
    planned = plan(problem, "powers_of_two", "50 kB")
    assert planned.adjoint == own
    theta = torch.zeros(len(problem.series), dtype=torch.float64, requires_grad=True)

    def gradient(adjoint: rad.Sketch, seed: int) -> Tensor:
        (found,) = torch.autograd.grad(control_loss(problem, theta, adjoint, make_key(seed)), theta)
        return found

    samples = torch.stack([gradient(own, seed) for seed in range(100)])
    check_unbiased(samples, gradient(rad.Identity(), 0))


def test_the_guide_shows_it() -> None:
    """docs/extending.md holds the sketch, word for word."""
    guide = (ROOT / "docs" / "extending.md").read_text()
    assert (ROOT / "tests" / "own_sketch.py").read_text().strip() in guide
