"""What a layer is, whatever class torch has made of it at run time.

`torch.nn.utils.parametrize` and `fully_shard` give a module a class of its own that is derived
from its former one and computes the same, and so do `rad.nn.serving` and `rad.nn.recomputing`. A
user's subclass may compute something else.
"""

from __future__ import annotations

import sys

from torch import nn

from rad.nn.plain import PlainTransposedLinear

_SAME = {"transformers.pytorch_utils.Conv1D": PlainTransposedLinear}
"""Layers of other libraries, by name (they need not be installed) -> what computes the same."""

SERVES = "_rad_serves"
RECOMPUTES = "_rad_recomputes"
"""Attributes of the classes that `rad.nn.serving` and `rad.nn.recomputing` make: that beneath."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class that says what a module computes."""
    kind = type(module)
    while _made_over(kind):
        kind = kind.__bases__[-1]
    return _SAME.get(f"{kind.__module__}.{kind.__qualname__}", kind)


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another kind in place: every reference to it follows."""
    if kind_of(module) is not kind:
        module.__class__ = _over(type(module), kind)


def _over(wrapper: type, kind: type[nn.Module]) -> type[nn.Module]:
    """The class that torch would have made over `kind`, as it did over another."""
    if not _made_by_torch(wrapper):
        return kind
    *others, beneath = wrapper.__bases__
    contents = {k: v for k, v in vars(wrapper).items() if k not in ("__dict__", "__weakref__")}
    made: type[nn.Module] = type(wrapper)(
        wrapper.__name__, (*others, _over(beneath, kind)), contents
    )
    return made


def _made_over(kind: type) -> bool:
    """Whether this class was made at run time over another that computes the same."""
    return SERVES in vars(kind) or RECOMPUTES in vars(kind) or _made_by_torch(kind)


def _made_by_torch(kind: type) -> bool:
    """Whether this class is none of torch's source, but made over one for a single purpose."""
    if kind.__module__.split(".")[0] != "torch" or "forward" in vars(kind):
        return False
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind
