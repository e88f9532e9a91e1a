"""Sketches: what is kept of a tensor, and how it is read back without bias.

A new sketch is a file here, which registers itself (`rad.sketches.registry`); its contract is
`rad.sketches.Sketch`. Sketches import draws, packing and kernels, and know no operator.
"""

from rad.draws.dispatch import fold_in
from rad.draws.reference import make_key
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity
from rad.sketches.importance import ImportanceSampling
from rad.sketches.principal import PrincipalProject
from rad.sketches.projection import DifferentProject, Project
from rad.sketches.rotation import RotatedRounding
from rad.sketches.rounding import DitheredRounding, StochasticRounding
from rad.sketches.sampled_rounding import SampledRounding
from rad.sketches.sampling import DifferentSample, SameSample

__all__ = [
    "DifferentProject",
    "DifferentSample",
    "DitheredRounding",
    "Identity",
    "ImportanceSampling",
    "PrincipalProject",
    "Project",
    "RotatedRounding",
    "SameSample",
    "SampledRounding",
    "Sketch",
    "StochasticRounding",
    "fold_in",
    "make_key",
]
