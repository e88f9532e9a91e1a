"""Reaction-diffusion control with a sketched adjoint (paper, section 5)."""

from rad.pde.control import control_loss
from rad.pde.cpu.checkpointing import Adjoint, Checkpointing
from rad.pde.fourier import Fourier
from rad.pde.problem import ReactionDiffusion
from rad.pde.residual import Residual

__all__ = [
    "Adjoint",
    "Checkpointing",
    "Fourier",
    "ReactionDiffusion",
    "Residual",
    "control_loss",
]
