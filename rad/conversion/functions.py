"""Which modules of a model have functional calls to serve (`rad.nn.serving`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from rad.conversion.readers import RESHAPES, functional_calls, unwrapped
from rad.nn import LAYERS, NORMS, RAD_LAYERS
from rad.nn.kinds import kind_of
from rad.nn.recomputing import within_recomputed
from rad.nn.serving import CALLS, COUNT, KEY

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules of torch whose forward pass calls nothing but modules, or that have none."""

NAMES = (CALLS, KEY, COUNT)
"""Attributes that a served module needs for itself."""


def served_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose forward passes call functions of torch by themselves, by first name.

    All that might, where the model cannot be traced. A module whose `forward` was replaced by a
    function is left alone.
    """
    model = unwrapped(model)
    calls = functional_calls(model)
    calling = None if calls is None else {name for name, _ in calls}
    return {
        name: module
        for name, module in with_forward(model, within_recomputed(model))
        if calling is None or name in calling or _is_torchs(module)
    }


def with_forward(
    model: nn.Module, without: Collection[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose forward passes may call functions, `without` some, by first name."""
    for name, module in model.named_modules():
        if module in without:
            continue
        kind = kind_of(module)
        is_layer = kind in LAYERS or kind in NORMS or kind in RAD_LAYERS
        if is_layer or isinstance(module, RESHAPES) or kind in CONTAINERS:
            continue
        if kind.__module__.startswith("torch.") and not _is_torchs(module):
            continue  # a wrapper: compiled, distributed, traced
        if "forward" not in vars(module):
            yield name, module


def _is_torchs(module: nn.Module) -> bool:
    """Whether it is one of torch's own layers, which a trace does not look into."""
    return kind_of(module).__module__.startswith("torch.nn.modules.")
