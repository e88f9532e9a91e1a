"""Randomized automatic differentiation: unbiased gradients from sketched activations."""

from rad import memory
from rad.conversion.audit import Audit, audit
from rad.conversion.modules import convert
from rad.conversion.report import report
from rad.planning.plan import Plan
from rad.planning.variants import fit
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
