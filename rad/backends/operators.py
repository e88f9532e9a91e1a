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

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Function = TypeVar("Function", bound=Callable[..., Any])


def opaque(*tags: torch.Tag) -> Callable[[Function], Function]:
    """Makes a function of tensors, numbers and text an operator while torch traces.

    It must be annotated as `torch.library.custom_op` demands, return tensors that are no views of
    its arguments, and run on fake tensors, which give the graph its shapes. A function that draws
    from torch's generator needs the tag `nondeterministic_seeded`.

    The operator's results are contiguous, whatever the function's are: a graph relies on the
    strides of the fakes, and the forms of a function for several devices agree in numbers only.
    """

    def decorate(function: Function) -> Function:
        name = f"rad::{function.__name__.strip('_')}"
        schema = torch.library.infer_schema(function, mutates_args=())

        @wraps(function)
        def contiguous(*arguments: Any) -> Any:
            return tree_map(Tensor.contiguous, function(*arguments))

        operator = torch.library.custom_op(
            name, contiguous, mutates_args=(), schema=schema, tags=tags
        )
        operator.register_fake(contiguous)

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

    Plain are None, texts, numbers, NaN and infinities among them and numpy's of any width, and
    tuples, lists and dicts of these.
    Raises TypeError for a field of another kind, and for a class that cannot be found under its
    name, such as one that a function defines.
    """
    kind = type(value)
    if not is_dataclass(kind) or "<locals>" in kind.__qualname__:
        raise TypeError(
            f"torch.compile cannot take {kind.__qualname__}: make it a dataclass at the top level "
            "of a module, or leave the model uncompiled"
        )
    values = [f"{field.name}={_text(getattr(value, field.name))}" for field in fields(value)]
    return f"{kind.__module__}:{kind.__qualname__}({', '.join(values)})"


def _text(value: Any) -> str:
    """A plain value as an expression for `_value`."""
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return f"{type(value).__name__}({_text(value.item())})"
    if isinstance(value, float):  # a traced program may take it for an input: make it a constant
        return repr(float.fromhex(value.hex()))
    if value is None or isinstance(value, str | int):
        return repr(value)
    if isinstance(value, tuple):
        return f"({''.join([f'{_text(part)}, ' for part in value])})"
    if isinstance(value, list):
        return f"[{', '.join([_text(part) for part in value])}]"
    if isinstance(value, dict):
        return f"{{{', '.join([f'{_text(k)}: {_text(v)}' for k, v in value.items()])}}}"
    raise TypeError(
        f"torch.compile cannot take a field {value!r} of a sketch: make it a number, a text or a "
        "tuple of these, or leave the model uncompiled"
    )


@lru_cache(maxsize=1024)
def from_text(text: str) -> Any:
    """What `as_text` wrote."""
    module, _, call = text.partition(":")
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    kind: Any = importlib.import_module(module)
    for name in ast.unparse(expression.func).split("."):
        kind = getattr(kind, name)
    return kind(**{str(k.arg): _value(k.value) for k in expression.keywords})


def _value(node: ast.expr) -> Any:
    """What `_text` wrote."""
    match node:
        case ast.Name(id=("inf" | "nan") as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.Call(func=ast.Name(id=kind), args=[number]):
            return getattr(np, kind)(_value(number))
        case ast.Tuple(elts=parts):
            return tuple(map(_value, parts))
        case ast.List(elts=parts):
            return list(map(_value, parts))
        case ast.Dict(keys=names, values=parts):
            return {_value(k): _value(v) for k, v in zip(names, parts, strict=True) if k}
    return ast.literal_eval(node)
