"""Classes over a user's module class that run its forward pass in another way."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from rad.errors import UsageError

Forward = Callable[..., Any]


def class_over(
    base: Any, mark: str, forward: Callable[[Forward], Forward], new: Callable[[Any], nn.Module]
) -> Any:
    """A subclass of `base` under the same name, whose forward pass is `forward(base.forward)`.

    Its attribute `mark` is the class beneath (`rad.nn.kinds`). Pickles and copies make their
    instance with `new(base)`, a function at the top level of a module.
    """

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        parts: Any = super(made, self).__reduce_ex__(protocol)
        return (new, (base,), *parts[2:])

    contents = {
        mark: base,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": reduce,
        "forward": wraps(base.forward)(forward(base.forward)),
    }
    made: Any = type(base)(base.__name__, (base,), contents)
    return made


def take_off(module: nn.Module, mark: str, what: str) -> None:
    """Give a module the class beneath that of `class_over` again.

    Raises UsageError, in which `what` is in the way, where torch has made a class over it.
    """
    if mark not in vars(type(module)):
        raise UsageError(
            f"{what} under a class that torch has made over the module since (fully_shard): "
            "convert before"
        )
    module.__class__ = vars(type(module))[mark]
