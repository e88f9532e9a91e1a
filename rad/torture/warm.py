"""For the process from which programs are forked: what it has compiled, they need not compile.

Nothing is differentiated here: autograd's threads do not survive a fork.
"""

from __future__ import annotations

import torch

from rad.pde import ReactionDiffusion
from rad.pde.cpu import engine
from rad.pde.training import initial_theta
from rad.sketches import DifferentSample, fold_in, make_key


def simulate() -> None:
    """A short simulation and its adjoint, as `scale=smoke` has them."""
    problem = ReactionDiffusion(points=9, steps=512, dt=1 / 256)
    coefficients = problem.series.matrix(initial_theta(problem.series, 0)[None])
    keys, adjoints = make_key(0).reshape(1), [DifferentSample(0.01)]
    _, kept = engine.forward(problem, coefficients, adjoints, keys, True)
    engine.backward(problem, coefficients, adjoints, keys, kept)


def sketch() -> None:
    """A layer's draws, and its weight gradient."""
    drawing, key = DifferentSample(0.1), make_key(0)
    x, left = torch.ones(150, 64), torch.ones(150, 6)
    drawing.contract(left, drawing.compress(x, key), (150, 64), fold_in(key, 0))


with torch.no_grad():
    simulate()
    sketch()
