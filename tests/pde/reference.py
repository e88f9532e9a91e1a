"""The problem as a plain torch loop, differentiated by autograd; small problems."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.pde import Fourier, ReactionDiffusion

TINY = ReactionDiffusion(points=5, steps=6, dt=0.03, diffusion=0.4, dtype=torch.float64)
SMALL = ReactionDiffusion(points=9, steps=150, dt=0.01, diffusion=0.3, dtype=torch.float64)
RICH = Fourier(((0, 0), (1, 0), (2, 0), (3, 0), (4, 2), (0, 3), (2, 1), (0, 4)))


def theta_of(problem: ReactionDiffusion, scale: float = 1.0) -> Tensor:
    """A control far from the steady state: float64, (P,)."""
    return scale * torch.linspace(-1, 2, len(problem.series), dtype=torch.float64).cos()


def states_of(problem: ReactionDiffusion, theta: Tensor) -> list[Tensor]:
    """phi_0 .. phi_steps on the interior."""
    states = [problem.initial()]
    for step in range(problem.steps):
        phi = states[-1]
        around = F.pad(phi, (1, 1, 1, 1))
        sides = around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]
        t = torch.tensor(step * problem.dt, dtype=torch.float64)
        control = problem.series.evaluate(theta, problem.interior_axis(), t)[:, None]
        states.append(phi + problem.rate * (sides - 4 * phi) + problem.dt * control * phi)
    return states


def loss_of(problem: ReactionDiffusion, theta: Tensor) -> Tensor:
    """The loss, differentiable."""
    states = states_of(problem, theta)
    squares = [(phi - problem.target(t)).square().sum() for t, phi in enumerate(states) if t]
    return torch.stack(squares).sum() * problem.dt / problem.points**2
