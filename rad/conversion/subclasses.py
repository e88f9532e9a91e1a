"""Which layers of torch can become RAD layers: subclasses of a user's, too, and what they need."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from rad.nn import LAYERS, NORMS
from rad.nn.kinds import is_own, kind_of
from rad.nn.registry import OPERATORS

_NEEDED = ("key", "calls", "sketch", "seed", "place", "shared", "replica", "mask")
"""Names of attributes that RAD layers give a layer."""


def can_become_rad(layer: nn.Module) -> bool:
    """Whether a layer's forward pass is its class's, and no name of a subclass's is in the way."""
    return "forward" not in vars(layer) and not (is_own(layer) and taken_name(layer) is not None)


def taken_name(layer: nn.Module) -> str | None:
    """An attribute of a torch layer under a name that its RAD layer needs; None without one.

    Of a user's subclass, under any name that the RAD layer has and torch's has not.
    """
    names = (*_NEEDED, *(row.asks for row in OPERATORS if row.asks is not None))
    if is_own(layer):
        kind: Any = kind_of(layer)
        names = (*names, *_names_of_rad(kind))
    return next((name for name in names if hasattr(layer, name)), None)


@cache
def _names_of_rad(kind: Any) -> tuple[str, ...]:
    rad = (LAYERS | NORMS).get(kind)
    return () if rad is None else tuple(sorted(set(dir(rad)) - set(dir(kind))))
