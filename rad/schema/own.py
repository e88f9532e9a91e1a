"""Classes and functions of one's own, named in a configuration by `_target_`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from rad.errors import UsageError, first_line

TARGET = "_target_"


def target_of(path: str) -> Callable[..., Any]:
    """The class or function `package.module.name`.

    Raises:
        UsageError: there is none, or its module cannot be imported.
    """
    module, _, name = path.rpartition(".")
    remedy = "install it, or name its folder: PYTHONPATH=<folder> python scripts/train.py ..."
    if not module:
        raise UsageError(f"{TARGET} is {path!r}; give a dotted name, <module>.<class or function>")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(f"cannot import {module} ({first_line(error)}); {remedy}") from error
    except Exception as error:  # whatever a module of somebody's own does when it is loaded
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{module} cannot be loaded ({cause}); correct it") from error
    if not callable(found):
        raise UsageError(f"{module} has no class or function {name!r}; correct {TARGET}")
    return found


def check_own(name: str, path: str, options: Mapping[str, Any], filled: Collection[str]) -> None:
    """Raises UsageError for options that the target's signature does not take.

    `name` is the setting's; `filled` are arguments that the caller gives. A value is held against
    the argument's annotation where that is bool, int, float, str or a list or tuple.
    """
    target = target_of(path)
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # built in: it takes what it takes
        return
    takes = [each for each in signature.parameters if each not in filled]
    given = dict.fromkeys(_passed(signature, filled))
    try:
        signature.bind(**given, **options)
    except TypeError as error:
        has = f"give {', '.join(takes)}" if takes else "leave them out, it has none"
        raise UsageError(f"{name}: {path} does not take these settings ({error}); {has}") from error
    hints = _hints(target)
    for key, value in options.items():
        if key in hints and not _fits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", hints[key])
            raise UsageError(f"{name}.{key} is {value!r}; give {wanted}, which {path} takes")


def call_own(path: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Call the target with its options, and with those of `given` that it takes."""
    target = target_of(path)
    try:
        passed = _passed(inspect.signature(target), given)
    except (TypeError, ValueError):
        passed = list(given)
    return target(**{name: given[name] for name in passed}, **options)


def _passed(signature: inspect.Signature, given: Collection[str]) -> list[str]:
    """The names among `given` that a function takes."""
    kinds = [each.kind for each in signature.parameters.values()]
    everything = inspect.Parameter.VAR_KEYWORD in kinds
    return [name for name in given if everything or name in signature.parameters]


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """False only for what is surely of another type."""
    if hint is bool or isinstance(value, bool):
        return hint not in (bool, int, float, str) or (hint is bool) == isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float)
    if hint in (int, str):
        return isinstance(value, hint)
    origin = get_origin(hint) or hint
    if origin in (list, tuple):
        inner = [each for each in get_args(hint) if each is not ...]
        same = isinstance(value, list) and len(set(inner)) <= 1
        return same and all(_fits(each, inner[0]) for each in value if inner)
    return True
