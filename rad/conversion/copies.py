"""A copy of a model to convert, and what a copy would silently undo."""

from __future__ import annotations

import copy
import gc
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from rad.errors import UsageError, first_line


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Warns where an optimizer holds the model's parameters, which are not the copy's.

    Raises UsageError for a model that cannot be copied.
    """
    if held_by_optimizer(model):
        warnings.warn(
            "an optimizer holds this model's parameters, and would train nothing of the converted "
            "copy: make the optimizer after converting, or convert with inplace=True",
            stacklevel=5,  # whoever called rad.convert
        )
    return duplicated(model, "convert it with inplace=True")


def duplicated(model: nn.Module, remedy: str) -> nn.Module:
    """A deep copy. Raises UsageError with that remedy for a model that cannot be copied."""
    try:
        return copy.deepcopy(model, fakes_in(model))
    except Exception as error:  # whatever an attribute may raise
        raise UsageError(
            f"this model cannot be copied ({type(error).__name__}: {first_line(error)}): {remedy}"
        ) from error


def fakes_in(model: nn.Module) -> dict[int, Any]:
    """Of tensors without numbers (`FakeTensorMode`): a memo with which `copy.deepcopy` shares them.

    There is nothing in them to change, and torch copies them into another mode, or crashes.
    """
    held = tree_leaves([vars(module) for module in model.modules()])
    return {id(leaf): leaf for leaf in held if isinstance(leaf, FakeTensor)}


def held_by_optimizer(model: nn.Module) -> bool:
    """Whether a parameter stands in a parameter group, as torch's optimizers have them.

    Looked for among all objects only where somebody beside the model refers to a parameter.
    """
    slots = Counter(id(p) for module in model.modules() for p in _held(module))
    parameters = list(model.parameters())
    here = 3  # the list, the variable below and the argument
    suspects = [p for p in parameters if sys.getrefcount(p) > slots[id(p)] + here]
    if not suspects:
        return False
    lists = [r for r in gc.get_referrers(*suspects) if _other_list(r, parameters, suspects)]
    groups = gc.get_referrers(*lists) if lists else []
    return any(_is_group(group, lists) for group in groups)


def _held(module: nn.Module) -> Iterator[object]:
    """What a module refers to as its parameters, and in lists, as recurrent layers do once more."""
    yield from module._parameters.values()
    for value in vars(module).values():
        if type(value) is list:
            yield from value


def _other_list(candidate: object, *own: object) -> bool:
    return type(candidate) is list and not any(candidate is each for each in own)


def _is_group(candidate: object, lists: list[object]) -> bool:
    """Whether this is {"params": one of the lists, ...}."""
    if type(candidate) is not dict:
        return False
    return any(candidate.get("params") is each for each in lists)
