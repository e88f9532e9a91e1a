import math
import re

import pytest
import torch

from rad.errors import UsageError
from rad.pde import Fourier, ReactionDiffusion, control_loss
from rad.sketches import Identity, make_key


def test_the_defaults_are_the_papers() -> None:
    problem = ReactionDiffusion()
    assert (problem.points, problem.steps, problem.dt) == (33, 40_960, 1 / 4096)
    assert problem.steps * problem.dt == 10
    assert 4 * problem.rate == 0.25
    theta = torch.arange(1.0, 8.0, dtype=torch.float64)
    x, t = 0.3, 0.7
    s, c = math.sin(math.pi * t), math.cos(math.pi * t)
    u, v = math.sin(2 * math.pi * x), math.cos(2 * math.pi * x)
    written_out = 1 + 2 * s + 3 * c + 4 * u * s + 5 * u * c + 6 * v * s + 7 * v * c
    at = torch.tensor([x]), torch.tensor(t)
    assert problem.series.evaluate(theta, *at).item() == pytest.approx(written_out, rel=1e-6)
    target = problem.target(1024)[7, 9].item()
    x, y = 8 / 32, 10 / 32
    swing = math.sin(math.pi / 4) * math.sin(2 * math.pi * x) * math.sin(math.pi * y) / 4
    assert target == pytest.approx(math.sin(math.pi * x) * math.sin(math.pi * y) + swing)


def test_an_unstable_step_is_refused_with_the_largest_that_is_stable() -> None:
    with pytest.raises(UsageError, match="unstable") as refused:
        ReactionDiffusion(dt=0.001)
    largest = float(re.findall(r"at most ([0-9.e-]+)", str(refused.value))[0])
    assert largest == 1 / 1024
    ReactionDiffusion(dt=largest)
    with pytest.raises(UsageError, match="unstable"):
        ReactionDiffusion(dt=largest * 1.000001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2}, "points is 2"),
        ({"points": 9.0}, "points is 9.0"),
        ({"steps": 0}, "steps is 0"),
        ({"dt": -1.0}, "dt is -1.0.*above 0"),
        ({"dt": math.nan}, "dt is nan"),
        ({"diffusion": "much"}, "diffusion is 'much'"),
        ({"amplitude": math.inf}, "amplitude is inf"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReactionDiffusion(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [(), (0, 1), ((0, 0), (0, 0)), ((0,),), ((0, -1),), ((0, 1.0),)])
def test_bad_series_are_refused(terms: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match=r"terms|term of"):
        Fourier(terms)


def test_shapes_that_do_not_fit_are_refused() -> None:
    problem, key = ReactionDiffusion(points=5, steps=3), make_key(0)
    for theta, keys in (
        (torch.zeros(6), key),
        (torch.zeros(2, 7), key),
        (torch.zeros(7), key[None]),
    ):
        with pytest.raises(UsageError, match="for a series of 7 terms"):
            control_loss(problem, theta, Identity(), keys)
    with pytest.raises(UsageError, match="3 adjoints for 2"):
        control_loss(problem, torch.zeros(2, 7), [Identity()] * 3, torch.stack([key, key]))
