"""What is kept of a tensor, and how it is read back without bias."""

from rad.sketches.base import Sketch
from rad.sketches.identity import Identity
from rad.sketches.projection import DifferentProject, Project
from rad.sketches.random import fold_in, make_key
from rad.sketches.sampling import DifferentSample, SameSample

__all__ = [
    "DifferentProject",
    "DifferentSample",
    "Identity",
    "Project",
    "SameSample",
    "Sketch",
    "fold_in",
    "make_key",
]
