"""Randomized automatic differentiation: unbiased gradients from sketched activations.

Names are imported when they are first used, so that `rad.results` and `rad.plotting` load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rad import functional, memory, nn
    from rad.conversion.audit import Audit, audit
    from rad.conversion.report import report
    from rad.conversion.slices import slice_batches
    from rad.partition.backend import backend, compile
    from rad.planning.convert import convert
    from rad.planning.plan import Plan
    from rad.planning.variants import fit
    from rad.sketches import (
        DifferentProject,
        DifferentSample,
        DitheredRounding,
        Identity,
        ImportanceSampling,
        PrincipalProject,
        Project,
        RotatedRounding,
        SameSample,
        SampledRounding,
        Sketch,
        StochasticRounding,
    )

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "DifferentProject",
    "DifferentSample",
    "DitheredRounding",
    "Identity",
    "ImportanceSampling",
    "Plan",
    "PrincipalProject",
    "Project",
    "RotatedRounding",
    "SameSample",
    "SampledRounding",
    "Sketch",
    "StochasticRounding",
    "audit",
    "backend",
    "compile",
    "convert",
    "fit",
    "functional",
    "memory",
    "nn",
    "report",
    "slice_batches",
]

_MODULES = {
    "Audit": "rad.conversion.audit",
    "audit": "rad.conversion.audit",
    "backend": "rad.partition.backend",
    "compile": "rad.partition.backend",
    "convert": "rad.planning.convert",
    "report": "rad.conversion.report",
    "slice_batches": "rad.conversion.slices",
    "Plan": "rad.planning.plan",
    "fit": "rad.planning.variants",
}
"""Where the names are that are not sketches."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rad' has no attribute {name!r}")
    if name in ("functional", "memory", "nn"):
        return import_module(f"rad.{name}")
    return getattr(import_module(_MODULES.get(name, "rad.sketches")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
