from dataclasses import replace

import pytest
import torch
from pde.reference import RICH, SMALL, TINY, loss_of, states_of, theta_of

from rad.pde import Adjoint, Checkpointing, ReactionDiffusion, control_loss
from rad.pde.cpu.trajectory import trajectory
from rad.sketches import DifferentSample, Identity, make_key

KEY = make_key(0)
PROBLEMS = {"small": SMALL, "rich": replace(SMALL, points=8, steps=97, series=RICH), "tiny": TINY}


def loss_and_gradient(
    problem: ReactionDiffusion, theta: torch.Tensor, adjoint: Adjoint
) -> tuple[float, torch.Tensor]:
    theta = theta.clone().requires_grad_()
    loss = control_loss(problem, theta, adjoint, KEY)
    return loss.item(), torch.autograd.grad(3 * loss, theta)[0]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("adjoint", [Identity(), Checkpointing(2), DifferentSample(1.0, False)])
def test_loss_and_gradient_are_those_of_the_plain_loop(
    problem: ReactionDiffusion, adjoint: Adjoint
) -> None:
    theta = theta_of(problem).requires_grad_()
    expected = loss_of(problem, theta)
    (gradient,) = torch.autograd.grad(3 * expected, theta)
    loss, ours = loss_and_gradient(problem, theta.detach(), adjoint)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12)


def test_gradcheck_with_everything_kept_and_not_with_a_sample() -> None:
    theta = theta_of(TINY).requires_grad_()

    def check(adjoint: Adjoint) -> bool:
        return torch.autograd.gradcheck(
            lambda theta: control_loss(TINY, theta, adjoint, KEY), theta, raise_exception=False
        )

    assert check(Identity())
    assert check(Checkpointing(0))
    assert not check(DifferentSample(0.5))


def test_checkpointing_gives_the_very_numbers_of_the_exact_adjoint() -> None:
    problem = ReactionDiffusion(steps=1000)
    theta = theta_of(problem, 2.0)
    loss, gradient = loss_and_gradient(problem, theta, Identity())
    for snapshots in (0, 1, 3, 50):
        other = loss_and_gradient(problem, theta, Checkpointing(snapshots))
        assert other[0] == loss
        assert torch.equal(other[1], gradient)


def test_float32_is_accurate_enough_for_a_long_simulation() -> None:
    single = ReactionDiffusion(steps=8192)
    double = replace(single, dtype=torch.float64)
    theta = torch.tensor([4.932, 0.05, -0.03, 0.02, 0.07, -0.04, 0.01], dtype=torch.float64)
    loss, gradient = loss_and_gradient(single, theta, Identity())
    true_loss, true = loss_and_gradient(double, theta, Identity())
    assert loss == pytest.approx(true_loss, rel=1e-4)
    assert (gradient - true).norm() < 1e-3 * true.norm()


def test_nothing_is_kept_where_no_gradient_is_asked_for() -> None:
    theta = theta_of(TINY)
    assert control_loss(TINY, theta, Identity(), KEY).grad_fn is None
    with torch.no_grad():
        assert control_loss(TINY, theta.requires_grad_(), Identity(), KEY).grad_fn is None


def test_differentiating_twice_raises() -> None:
    theta = theta_of(TINY).requires_grad_()
    loss = control_loss(TINY, theta, Identity(), KEY).square()
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_trajectory_is_that_of_the_plain_loop() -> None:
    theta = theta_of(SMALL)
    ours = trajectory(SMALL, theta, [0, 7, 150])
    states = torch.stack([states_of(SMALL, theta)[step] for step in (0, 7, 150)])
    assert ours.shape == (3, 9, 9)
    torch.testing.assert_close(ours[:, 1:-1, 1:-1], states)
    for edge in (ours[:, 0], ours[:, -1], ours[:, :, 0], ours[:, :, -1]):
        assert not edge.any()
