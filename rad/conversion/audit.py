"""Predicted, saved and peak bytes of a model, reconciled layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rad.conversion.example import check_loss, check_model, check_real_memory
from rad.conversion.kept import SERVED, kind_of_holding, rows, unexpected
from rad.conversion.summary import Row, lines, next_step
from rad.errors import UsageError
from rad.memory.graph import gradients_enabled, holdings, storage, tensors_in
from rad.memory.measure import parameter_bytes, peak_bytes
from rad.nn import RAD_LAYERS
from rad.nn.base import keeps_now
from rad.nn.kinds import kind_of
from rad.nn.layer_io import first_argument, watching
from rad.nn.recomputing import is_recomputed


@dataclass(frozen=True)
class Entry:
    """What one module keeps of one kind: `sketch`, `mask`, `exact` or `output`.

    `mask` is what a ReLU, max pooling, dropout or embedding layer keeps, and the bits of a
    recurrent layer; `exact` is a tensor kept as it is, by a RAD layer or by torch; `output` is
    kept outside the model, by the loss. `module` is the dotted name, the first of several, empty
    for what the model's own forward keeps. Keys count with what they drew.
    """

    module: str
    kind: str
    saved_bytes: int


@dataclass(frozen=True)
class Audit:
    """Predicted, saved and peak bytes of one forward (peak: and backward) pass.

    `predicted` and `saved` are by module; `unexpected` names, in words, whatever is kept beyond
    the prediction. `also` holds the further names of modules that have several. Bytes of
    parameters stand apart from all others. Prints `rows`: a line for each kind, or where it is
    `full` for each of them, the largest first, and what to do next.
    """

    entries: tuple[Entry, ...]
    predicted: dict[str, int]
    saved: dict[str, int]
    unexpected: tuple[str, ...]
    parameter_bytes: int
    peak_bytes: int
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    full: bool = False

    @property
    def saved_bytes(self) -> int:
        """All that is kept, as `rad.memory.saved_bytes` measures it."""
        return sum(entry.saved_bytes for entry in self.entries)

    @property
    def predicted_bytes(self) -> int:
        """What the RAD layers should keep, by their shapes, and the loss does."""
        outside = sum(entry.saved_bytes for entry in self.entries if entry.kind == "output")
        return sum(self.predicted.values()) + outside

    def __str__(self) -> str:
        shown = self.rows
        if self.full:
            also = {name: " = ".join((name, *others)) for name, others in self.also.items()}
            shown = tuple(replace(row, name=also.get(row.name, row.name)) for row in shown)
        served = sum(row.nbytes or 0 for row in self.rows if row.keeps == SERVED)
        beside = f" and {served:,} of functional calls, measured only" if served else ""
        total = (
            f"{self.saved_bytes:,}  in all, {self.predicted_bytes:,} predicted{beside}; parameters "
            f"{self.parameter_bytes:,}, peak of forward and backward {self.peak_bytes:,}"
        )
        return "\n".join([*lines(shown, self.full, 2), total, next_step(shown)])


@gradients_enabled()
def audit(model: nn.Module, forward: Callable[[], Tensor], *, full: bool = False) -> Audit:
    """Reconcile what a converted model should keep with what it does keep.

    `forward()` calls `model`, in training mode, and returns the scalar loss, such as
    `lambda: F.cross_entropy(model(x), y)`. It is run three times, once with a backward pass,
    with gradients on whatever the mode of the caller. The gradients are taken away again, and
    buffers, such as running statistics, put back. A module's bytes are those first kept while its
    forward runs: what several modules share counts with the first. `full` decides how it prints: a
    line for each module in place of one for each kind.
    Raises UsageError where `forward` keeps nothing, calls no module of the model or returns no
    scalar with a gradient, and for what is no model (a class, lazy layers, the meta device).
    """
    check_model(model)
    check_real_memory(model)

    def loss() -> Tensor:
        result = forward()
        check_loss(result)
        return result

    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []
    predicted: dict[str, int] = defaultdict(int)
    with _buffers_put_back(model), _watching(names, stack, predicted):
        held = holdings(loss, lambda: stack[-1] if stack else None)
    if not held or not predicted:
        raise _nothing_at_work(model)
    modules = {name: module for module, name in names.items()}
    entries: dict[tuple[str, str], int] = defaultdict(int)
    saved: dict[str, int] = defaultdict(int)
    for holding in held:
        name = names.get(holding.place, "")
        kind = kind_of_holding(holding)
        entries[name, kind] += holding.nbytes
        if kind != "output":
            saved[name] += holding.nbytes
    with _buffers_put_back(model), _gradients_apart(model):
        peak = peak_bytes(lambda: loss().backward())
    return Audit(
        entries=tuple(Entry(name, kind, size) for (name, kind), size in entries.items()),
        predicted=dict(predicted),
        saved=dict(saved),
        unexpected=tuple(unexpected(held, names, modules, predicted, saved)),
        parameter_bytes=parameter_bytes(model),
        peak_bytes=peak,
        also=_further_names(model),
        rows=tuple(rows(held, names, predicted, saved)),
        full=full,
    )


def _nothing_at_work(model: nn.Module) -> UsageError:
    """The error that says why no RAD layer kept anything."""
    layers = [module for module in model.modules() if kind_of(module) in RAD_LAYERS]
    if not layers:
        how = "the model is not converted: audit what rad.convert(model, sketch) returns"
    elif not any(layer.training for layer in layers):
        how = "all of them are in evaluation mode: call model.train()"
    else:
        how = "let forward() call the model that rad.convert returned, and return the loss"
    return UsageError(f"the audit saw no RAD layer at work; {how}")


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[None]:
    """The parameters have no gradients inside, and those that they had again afterwards."""
    before = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, grad in zip(model.parameters(), before, strict=True):
            parameter.grad = grad


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    """Every module has the buffers of before afterwards, with the numbers of before."""
    before = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for buffers, name, buffer, numbers in before:
            if not torch.equal(buffer, numbers):
                with torch.no_grad():
                    buffer.copy_(numbers)
            buffers[name] = buffer


def _further_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Of modules that are registered more than once, by their first name."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


@contextmanager
def _watching(
    names: dict[nn.Module, str],
    stack: list[nn.Module],
    predicted: dict[str, int],
) -> Iterator[None]:
    """Keeps the running modules on the stack, innermost last, and adds up what they should keep."""
    exact_storages: set[int] = set()

    def exact(tensor: Tensor) -> int:
        """Bytes of a tensor kept whole, once."""
        if storage(tensor) in exact_storages:
            return 0
        exact_storages.add(storage(tensor))
        return tensor.numel() * tensor.element_size()

    def enter(module: nn.Module, args: Any, keywords: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        stack.pop()
        if is_recomputed(module) and keeps_now(module):
            predicted[names[module]] += sum(map(exact, tensors_in((args, keywords))))
        elif module not in within and kind_of(module) in RAD_LAYERS and torch.is_grad_enabled():
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if module.training and any(tensor.requires_grad for tensor in tensors):
                x = first_argument(module, args, keywords)
                predicted[names[module]] += module.kept_bytes(x, output, exact)  # type: ignore[operator]

    within = {part for module in names if is_recomputed(module) for part in module.modules()}
    with watching(names, enter, leave):
        yield
