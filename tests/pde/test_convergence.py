"""Orders of convergence on a solution that is known.

phi = sin(pi x) exp(a cos 2 pi x) sin(pi y) with a = A sin(pi t) solves the equation for a
control C = (phi_t - D Lap phi) / phi that is a Fourier series of seven terms.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rad.pde import Fourier, ReactionDiffusion
from rad.pde.cpu.trajectory import trajectory

A, D, END = 0.3, 0.25, 0.25
B = D * math.pi**2 * A**2
SERIES = {
    (0, 0): 2 * D * math.pi**2 - B,
    (0, 1): 4 * D * math.pi**2 * A,
    (0, 4): B,
    (2, 1): 8 * D * math.pi**2 * A,
    (2, 2): math.pi * A,
    (4, 0): B,
    (4, 4): -B,
}
THETA = torch.tensor(list(SERIES.values()), dtype=torch.float64)


def solved(points: int, steps: int) -> Tensor:
    problem = ReactionDiffusion(
        points=points,
        steps=steps,
        dt=END / steps,
        diffusion=D,
        series=Fourier(tuple(SERIES)),
        dtype=torch.float64,
    )
    return trajectory(problem, THETA, [steps])[0]


def true(points: int) -> Tensor:
    x = torch.linspace(0, 1, points, dtype=torch.float64)
    bump = (A * math.sin(math.pi * END) * (2 * torch.pi * x).cos()).exp()
    return ((torch.pi * x).sin() * bump)[:, None] * (torch.pi * x).sin()


def test_first_order_in_dt() -> None:
    coarse, middle, fine = (solved(17, steps) for steps in (128, 256, 512))
    order = math.log2((coarse - middle).norm() / (middle - fine).norm())
    assert order == pytest.approx(1, abs=0.05)


def test_second_order_in_dx() -> None:
    def error(points: int) -> float:
        steps = (points - 1) ** 2 // 2
        in_space_alone = 2 * solved(points, 2 * steps) - solved(points, steps)
        return (in_space_alone - true(points)).abs().max().item()

    errors = [error(points) for points in (9, 17, 33)]
    assert errors[-1] < 1e-2
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2, 2], abs=0.1)
