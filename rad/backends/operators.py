"""What `torch.compile` does not look into: functions that its graphs call as one operator.

While torch traces a program for compilation, a function decorated with `opaque` enters the graph
as the operator `rad::<name>` (`torch.library`) and runs as itself when the graph runs. So draws,
codes and packed bits are those of the eager program to the bit, whatever the compiler does around
them. Elsewhere the function is called directly.

Operators take tensors, numbers and text; sketches travel as text (`as_text`, `from_text`).
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def opaque(*tags: torch.Tag) -> Callable[[Function], Function]:
    """Makes a function of tensors, numbers and text an operator while torch traces.

    It must be annotated as `torch.library.custom_op` demands, return tensors that are no views of
    its arguments, and run on fake tensors, which give the graph its shapes. A function that draws
    from torch's generator needs the tag `nondeterministic_seeded`.
    """

    def decorate(function: Function) -> Function:
        name = f"rad::{function.__name__.strip('_')}"
        operator = torch.library.custom_op(name, function, mutates_args=(), tags=tags)
        operator.register_fake(function)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            if torch.compiler.is_compiling():
                return operator(*arguments)
            return function(*arguments)

        return call  # type: ignore[return-value]

    return decorate


def uncompiled(function: Function) -> Function:
    """Makes a function run as it is, with all that it calls, where a compiled program calls it."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it is slow
            return function(*arguments, **options)
        return _disabled(function)(*arguments, **options)

    return call  # type: ignore[return-value]


@cache
def _disabled(function: Function) -> Function:
    disabled: Function = torch.compiler.disable(function)
    return disabled


def as_text(value: Any) -> str:
    """A dataclass of plain values as the call that makes it: `module:Class(field=1)`.

    Raises TypeError for a class that cannot be found under its name, such as one that a function
    defines.
    """
    kind = type(value)
    if not is_dataclass(kind) or "<locals>" in kind.__qualname__:
        raise TypeError(
            f"torch.compile cannot take {kind.__qualname__}: make it a dataclass at the top level "
            "of a module, or leave the model uncompiled"
        )
    values = [f"{field.name}={_constant(getattr(value, field.name))!r}" for field in fields(value)]
    return f"{kind.__module__}:{kind.__qualname__}({', '.join(values)})"


def _constant(value: Any) -> Any:
    """The value, a constant of a traced program, which may take floats for inputs."""
    if isinstance(value, tuple):
        return tuple([_constant(part) for part in value])
    return float.fromhex(value.hex()) if isinstance(value, float) else value


@lru_cache(maxsize=1024)
def from_text(text: str) -> Any:
    """What `as_text` wrote."""
    module, _, call = text.partition(":")
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    kind: Any = importlib.import_module(module)
    for name in ast.unparse(expression.func).split("."):
        kind = getattr(kind, name)
    return kind(**{str(k.arg): ast.literal_eval(k.value) for k in expression.keywords})
