"""Randomized automatic differentiation: unbiased gradients from sketched activations."""

from rad import memory
from rad.auditing import Audit, audit
from rad.convert import convert
from rad.plan import Plan
from rad.reporting import report
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    DitheredRounding,
    Identity,
    ImportanceSampling,
    Project,
    RotatedRounding,
    SameSample,
    SampledRounding,
    Sketch,
    StochasticRounding,
)
from rad.variants import fit

__all__ = [
    "Audit",
    "DifferentProject",
    "DifferentSample",
    "DitheredRounding",
    "Identity",
    "ImportanceSampling",
    "Plan",
    "Project",
    "RotatedRounding",
    "SameSample",
    "SampledRounding",
    "Sketch",
    "StochasticRounding",
    "audit",
    "convert",
    "fit",
    "memory",
    "report",
]
