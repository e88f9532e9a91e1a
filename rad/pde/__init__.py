"""Reaction-diffusion control with a sketched adjoint (paper, section 5)."""

from rad.pde.adjoint import Adjoint, Checkpointing, Residual
from rad.pde.control import control_loss
from rad.pde.fourier import Fourier
from rad.pde.problem import ReactionDiffusion

__all__ = [
    "Adjoint",
    "Checkpointing",
    "Fourier",
    "ReactionDiffusion",
    "Residual",
    "control_loss",
]
