import pytest
import torch

from rad.pde import Fourier, ReactionDiffusion
from rad.pde.training import Control, initial_theta
from rad.sketches import DifferentSample


def test_the_start_is_the_papers() -> None:
    thetas = torch.stack([initial_theta(Fourier(), seed) for seed in range(200)])
    assert (thetas[:, 0] == 4.932).all()
    drawn = thetas[:, 1:]
    assert drawn.abs().max() <= 0.1
    assert drawn.min() < -0.098
    assert drawn.max() > 0.098
    assert abs(drawn.mean()) < 0.01
    assert drawn.unique().numel() == drawn.numel()
    shifted = initial_theta(Fourier(((1, 0), (0, 0))), 0)
    assert shifted[1] == 4.932


def test_each_iteration_draws_afresh_and_again_the_same() -> None:
    control = Control(ReactionDiffusion(points=5, steps=9), DifferentSample(0.2), seed=1)

    def gradient(iteration: int) -> torch.Tensor:
        return torch.autograd.grad(control(iteration), control.theta)[0]

    assert torch.equal(gradient(3), gradient(3))
    assert not torch.equal(gradient(3), gradient(4))
    assert control(3).item() == pytest.approx(control(4).item(), rel=1e-12)
