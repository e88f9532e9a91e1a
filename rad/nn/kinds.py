"""What a layer is, whatever class it is of.

`torch.nn.utils.parametrize` and `fully_shard` give a module a class of its own that is derived
from its former one and computes the same, and so do `rad.nn.serving` and `rad.nn.recomputing`. A
user's subclass of a torch layer computes the same where it overrides nothing that the layer
computes with.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache
from typing import Any

from torch import nn

from rad.nn.plain import PlainTransposedLinear

_SAME = {"transformers.pytorch_utils.Conv1D": PlainTransposedLinear}
"""Layers of other libraries, by name (they need not be installed) -> what computes the same."""

SERVES = "_rad_serves"
RECOMPUTES = "_rad_recomputes"
"""Attributes of the classes that `rad.nn.serving` and `rad.nn.recomputing` make: that beneath."""

_COMPUTES = "_rad_computes"
"""Attribute of the classes that stand for a user's subclass: the RAD layer that they are."""

_NO_LAYERS = ("module", "container", "transformer", "lazy")
"""Parts of torch.nn.modules whose classes call other modules, or nothing."""

_HARMLESS = frozenset(
    (
        *("__module__", "__qualname__", "__doc__", "__annotations__", "__dict__", "__weakref__"),
        *("__init__", "__constants__", "__repr__", "extra_repr", "_get_name", "_version"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
        *("reset_parameters", "train", "eval", "state_dict", "load_state_dict"),
        *("_save_to_state_dict", "_load_from_state_dict"),
    )
)
"""What a subclass may define anew without computing anything else."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class that says what a module computes."""
    kind = type(module)
    while _made_over(kind):
        kind = kind.__bases__[-1]
    same = _SAME.get(f"{kind.__module__}.{kind.__qualname__}")
    if same is not None:
        return same
    layer = _layer_beneath(kind)
    is_torchs = layer is not None and overridden(kind, layer) is None
    computed: type[nn.Module] = vars(kind).get(_COMPUTES, layer if is_torchs else kind)
    return computed


def is_own(module: nn.Module) -> bool:
    """Whether a module is of a user's subclass of one of torch's layers."""
    kind = type(module)
    while _made_over(kind):
        kind = kind.__bases__[-1]
    return _layer_beneath(kind) is not None


def _layer_beneath(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The layer of torch that a user's class is derived from."""
    if kind.__module__.split(".")[0] in ("torch", "rad") or _COMPUTES in vars(kind):
        return None
    line = (each for each in kind.__mro__ if each.__module__.startswith("torch.nn.modules."))
    layer = next(line, nn.Module)
    return None if layer.__module__.rpartition(".")[2] in _NO_LAYERS else layer


def overridden(kind: type[nn.Module], layer: type[nn.Module]) -> str | None:
    """What a class derived from a layer of torch does in its own way: a name, None for nothing.

    Methods of the layer, and properties in the place of what it reads.
    """
    torchs: Any = layer
    read = _read_by(torchs)
    for each in kind.__mro__[: kind.__mro__.index(layer)]:
        for name, value in vars(each).items():
            replaces = isinstance(value, property) and name in read
            if name not in _HARMLESS and (replaces or name == "__slots__" or hasattr(layer, name)):
                return name
    return None


@cache
def _read_by(layer: Any) -> set[str]:
    """Names of the attributes of a layer of torch's, as far as its annotations tell."""
    annotated = (name for each in layer.__mro__ for name in vars(each).get("__annotations__", ()))
    return {"weight", "bias", *annotated, *inspect.signature(layer).parameters}


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another kind in place: every reference to it follows.

    One of a user's subclass stays an instance of that.
    """
    if kind_of(module) is not kind:
        module.__class__ = _over(type(module), kind)


def _over(former: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """The class that torch would have made over `kind`, as it did over another."""
    if not _made_by_torch(former):
        made_of: Any = kind, former
        return kind if _layer_beneath(former) is None else _own(*made_of)
    *others, beneath = former.__bases__
    contents = {k: v for k, v in vars(former).items() if k not in ("__dict__", "__weakref__")}
    metaclass: Any = type(former)
    made: type[nn.Module] = metaclass(former.__name__, (*others, _over(beneath, kind)), contents)
    return made


@cache
def _own(kind: type[nn.Module], subclass: Any) -> type[nn.Module]:
    """The RAD layer, as an instance of a user's subclass of torch's."""

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        parts: Any = super(made, self).__reduce_ex__(protocol)
        return (_new, (kind, subclass), *parts[2:])

    names = ("__module__", "__qualname__", "__doc__")
    contents = {name: getattr(subclass, name) for name in names}
    contents |= {_COMPUTES: kind, "__reduce_ex__": reduce}
    metaclass = type(subclass)
    made: type[nn.Module] = metaclass(subclass.__name__, (kind, subclass), contents)
    return made


def _new(kind: Any, subclass: Any) -> nn.Module:
    """An instance without contents, as pickling and copying make it."""
    made = _own(kind, subclass)
    return made.__new__(made)


def _made_over(kind: type) -> bool:
    """Whether this class was made at run time over another that computes the same."""
    return SERVES in vars(kind) or RECOMPUTES in vars(kind) or _made_by_torch(kind)


def _made_by_torch(kind: type) -> bool:
    """Whether this class is none of torch's source, but made over one for a single purpose."""
    if kind.__module__.split(".")[0] != "torch" or "forward" in vars(kind):
        return False
    return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind
