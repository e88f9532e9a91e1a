"""What an audited model keeps, tensor by tensor, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from rad.conversion.reasons import (
    EVALUATED,
    RECOMPUTED,
    reason_of,
    reason_of_call,
    remedy_of_call,
)
from rad.conversion.summary import LOSS, Row
from rad.memory.graph import Holding
from rad.nn import LAYERS, NORMS, RAD_LAYERS, RNN, Sketching
from rad.nn.kinds import kind_of
from rad.nn.recomputing import is_recomputed
from rad.sketches import Identity

SERVED = "a functional call, served by rad.functional"


def kind_of_holding(holding: Holding) -> str:
    """`sketch`, `mask`, `exact` or `output`, as of `rad.conversion.audit.Entry`."""
    module = holding.place
    if module is None:
        return "output"
    if _is_served(holding):
        return "sketch"
    if kind_of(module) not in RAD_LAYERS or not module.training:
        return "exact"
    if not isinstance(module, Sketching):
        return "exact" if holding.dtype.is_floating_point else "mask"
    if isinstance(module, RNN) and holding.dtype == torch.uint8 and len(holding.shape) != 2:
        return "mask"  # codes have two axes: steps, and those of a step
    is_exact = isinstance(module.sketch, Identity) or not module.sketches_now()
    return "exact" if is_exact else "sketch"


def unexpected(
    held: tuple[Holding, ...],
    names: dict[nn.Module, str],
    modules: dict[str, nn.Module],
    predicted: dict[str, int],
    saved: dict[str, int],
) -> Iterator[str]:
    """In words: RAD layers above their prediction, and everything that other modules keep."""
    by_layers: dict[nn.Module, int] = defaultdict(int)
    for name, size in saved.items():
        if name in predicted and size > predicted[name]:
            kept = f"`{name}` ({type(modules[name]).__name__}) keeps {size:,} bytes"
            reason = reason_of(modules[name])
            beyond = f" where {predicted[name]:,} are predicted"
            yield kept + (beyond if reason is None else f", {reason.keeps}")
    for holding in held:
        module = holding.place
        if module is None or (kind_of(module) in RAD_LAYERS and module.training):
            continue
        if _is_served(holding) or is_recomputed(module):
            continue
        where = f"`{names[module]}`" if names[module] else "the model"
        kept = f"{holding.nbytes:,} bytes"
        if kind_of(module) in RAD_LAYERS:
            yield f"{where} is in evaluation mode, where it is torch's, and keeps {kept}"
        elif kind_of(module) in LAYERS:
            yield f"{where} is torch's {kind_of(module).__name__} and keeps {kept}: convert it"
        elif _is_one_layer(module):
            by_layers[module] += holding.nbytes
        else:
            call, remedy = f"{holding.operator}{holding.call}", remedy_of_call(holding.operator)
            advice = "no RAD layer does this" if remedy is None else remedy
            yield f"`{call}` is functional, in {where}, and keeps {kept}: {advice}"
    for module, size in by_layers.items():
        kind = type(module).__name__
        why = (
            "rad.convert(..., path=) rounds it"
            if kind_of(module) in NORMS
            else "it has no RAD layer"
        )
        yield f"`{names[module]}` ({kind}) keeps {size:,} bytes: {why}"


def _is_served(holding: Holding) -> bool:
    """Whether a functional call keeps it that RAD serves (`rad.nn.serving`)."""
    return kind_of(holding.place) not in RAD_LAYERS and holding.source.startswith("rad.")


def _is_one_layer(module: nn.Module) -> bool:
    """Whether what the module keeps is that of a layer, not of calls in a forward of its own.

    So it is of torch's layers, of subclasses of those that have RAD layers, and of whatever has
    neither parameters nor submodules.
    """
    composed, weighted = any(module.children()), any(True for _ in module.parameters(False))
    if isinstance(module, tuple(LAYERS)) or not (composed or weighted):
        return True
    return type(module).__module__.startswith("torch.nn.") and (weighted or not composed)


def rows(
    held: tuple[Holding, ...],
    names: dict[nn.Module, str],
    predicted: dict[str, int],
    saved: dict[str, int],
) -> Iterator[Row]:
    """What is kept, by module, by function called without one, and by the loss."""
    found: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for holding in held:
        if holding.place is not None and _is_served(holding):
            row = Row(names[holding.place], f"{holding.operator}()", SERVED)
        else:
            row = _row(holding.place, holding.operator, names, predicted, saved)
        found[row.name, row.kind, row.keeps, row.remedy] += holding.nbytes
    yield from (Row(*words, nbytes) for words, nbytes in found.items())


def _row(
    module: nn.Module | None,
    operator: str,
    names: dict[nn.Module, str],
    predicted: dict[str, int],
    saved: dict[str, int],
) -> Row:
    """What a module keeps, or what an operator that no layer has called keeps in it, in words."""
    if module is None:
        return Row("", LOSS, "kept outside the model")
    name, kind = names[module], kind_of(module).__name__
    if is_recomputed(module):
        return Row(name, kind, RECOMPUTED)
    if kind_of(module) in RAD_LAYERS:
        reason = reason_of(module) if module.training else EVALUATED
        over = saved[name] - predicted.get(name, 0)
        if reason is not None:
            return Row.of_torch(name, kind, reason)
        more = f", and {over:,} bytes more than predicted" if over > 0 else ""
        return Row(name, kind, f"{module.keeps}{more}")
    reason = reason_of(module) if _is_one_layer(module) else reason_of_call(operator)
    assert reason is not None
    return Row.of_torch(name, kind if _is_one_layer(module) else f"{operator}()", reason)
