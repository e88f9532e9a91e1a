"""The reaction-diffusion problem of the paper's section 5, on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rad.errors import UsageError
from rad.pde.fourier import Fourier

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class ReactionDiffusion:
    """d phi / dt = D Lap phi + C(x, t) phi on the unit square, phi = 0 on its boundary.

    Explicit Euler steps on the five-point Laplacian, dx = 1 / (points - 1):

        phi_{t+1} = phi_t + (D dt/dx^2) Lap(phi_t) + dt C_t * phi_t,

    from phi_0 = sin(pi x) sin(pi y). The loss is the squared distance to the target
    phi_0 + amplitude sin(pi t) sin(2 pi x) sin(pi y), averaged over all points x points of
    the grid and summed over steps 1..steps times dt. Defaults: the paper's.

    `dtype` is that of the states and of what is kept of them; sums over a row of the grid run in
    it, all others in float64.
    Raises UsageError for values that cannot be used, and for an unstable step: explicit
    Euler needs 4 D dt/dx^2 <= 1.
    """

    points: int = 33
    steps: int = 40_960
    dt: float = 1 / 4096
    diffusion: float = 0.25
    amplitude: float = 0.25
    series: Fourier = field(default_factory=Fourier)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, least in (("points", 3), ("steps", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"{name} is {value!r}; give a whole number of at least {least}")
        for name in ("dt", "diffusion"):
            _check_number(name, getattr(self, name), positive=True)
        _check_number("amplitude", self.amplitude, positive=False)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is {self.dtype}; choose torch.float32 or torch.float64")
        if self.rate > 0.25:
            largest = 0.25 / (self.diffusion * (self.points - 1) ** 2)
            raise UsageError(
                f"dt={self.dt:g} is unstable (4 D dt/dx^2 = {4 * self.rate:.4g} > 1); "
                f"give at most {largest!r}, the largest stable dt on this grid"
            )

    @property
    def inner(self) -> int:
        """Interior points along an axis, n; a state has n^2 values that can change."""
        return self.points - 2

    @property
    def rate(self) -> float:
        """D dt / dx^2."""
        return self.diffusion * self.dt * (self.points - 1) ** 2

    def interior_axis(self) -> Tensor:
        """Coordinates of the interior points along an axis: float64, (n,)."""
        return torch.arange(1, self.points - 1, dtype=torch.float64) / (self.points - 1)

    def initial(self) -> Tensor:
        """phi_0 on the interior: float64, (n, n); the first axis is x."""
        wave = (torch.pi * self.interior_axis()).sin()
        return wave[:, None] * wave

    def swing(self) -> Tensor:
        """What sin(pi t) multiplies in the target, on the interior: float64, (n, n)."""
        x = self.interior_axis()
        return self.amplitude * (2 * torch.pi * x).sin()[:, None] * (torch.pi * x).sin()

    def target(self, step: int) -> Tensor:
        """The target after `step` steps, on the interior: float64, (n, n)."""
        return self.initial() + math.sin(math.pi * step * self.dt) * self.swing()


def _check_number(name: str, value: Any, positive: bool) -> None:
    number = type(value) in (int, float) and math.isfinite(value)
    if not number or (positive and value <= 0):
        raise UsageError(f"{name} is {value!r}; give a finite number{' above 0' * positive}")
