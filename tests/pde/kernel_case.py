"""Three simulations, side by side, on which Triton kernels and compiled loops are compared."""

import torch
from torch import Tensor

from rad.pde import Adjoint, Fourier, ReactionDiffusion
from rad.sketches import DifferentSample, Identity, fold_in, make_key

ADJOINTS: list[Adjoint] = [DifferentSample(0.3), Identity(), DifferentSample(0.9)]
PROBLEM = ReactionDiffusion(
    points=6,
    steps=5,
    dt=0.01,
    series=Fourier(((0, 0), (2, 1), (1, 2), (0, 3))),
    dtype=torch.float64,
)


def inputs() -> tuple[Tensor, Tensor]:
    """Coefficients and keys."""
    size = len(PROBLEM.series) * len(ADJOINTS)
    theta = torch.linspace(-2, 3, size, dtype=torch.float64).cos().view(len(ADJOINTS), -1)
    keys = torch.stack([fold_in(make_key(5), i) for i in range(len(ADJOINTS))])
    return PROBLEM.series.matrix(4 * theta), keys
