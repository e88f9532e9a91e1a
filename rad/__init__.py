"""Randomized automatic differentiation: unbiased gradients from sketched activations."""

from rad import memory
from rad.convert import convert
from rad.reporting import report
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    Identity,
    Project,
    SameSample,
    Sketch,
)

__all__ = [
    "DifferentProject",
    "DifferentSample",
    "Identity",
    "Project",
    "SameSample",
    "Sketch",
    "convert",
    "memory",
    "report",
]
