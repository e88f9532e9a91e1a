"""A model as a plan has it: converted, or compiled."""

from __future__ import annotations

from torch import nn

from rad.conversion import modules
from rad.conversion.copies import copied
from rad.planning.compiled import compile_divided
from rad.planning.plan import Plan


def carry_out(model: nn.Module, plan: Plan, seed: int = 0, *, inplace: bool = False) -> nn.Module:
    """A copy of the model that trains as planned, or with `inplace` the model itself."""
    if plan.division is None:
        return modules.convert(model, plan, seed, inplace=inplace)
    own = model if inplace else copied(model)
    compile_divided(own, plan.division, seed)
    return own
