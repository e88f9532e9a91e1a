"""Predicted, saved and peak bytes of a model, reconciled layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rad.conversion.example import check_loss, check_model, check_real_memory
from rad.errors import UsageError
from rad.memory.graph import Holding, gradients_enabled, holdings, storage
from rad.memory.measure import parameter_bytes, peak_bytes
from rad.nn import LAYERS, NORMS, RAD_LAYERS, RNN, Sketching
from rad.nn.kinds import kind_of
from rad.nn.registry import MODULE_OF_NODE
from rad.sketches import Identity


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
    """Predicted, saved and peak bytes of one forward (peak: and backward) pass; prints as a table.

    `predicted` and `saved` are by module; `unexpected` names, in words, whatever is kept beyond
    the prediction. `also` holds the further names of modules that have several. Bytes of
    parameters stand apart from all others.
    """

    entries: tuple[Entry, ...]
    predicted: dict[str, int]
    saved: dict[str, int]
    unexpected: tuple[str, ...]
    parameter_bytes: int
    peak_bytes: int
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        rows = [("module", "kind", "saved bytes", "predicted")]
        for entry in self.entries:
            names = " = ".join((entry.module, *self.also.get(entry.module, ())))
            name = names or "(model)" if entry.kind != "output" else "(loss)"
            predicted = self.predicted.get(entry.module) if entry.kind != "output" else None
            expected = "" if predicted is None else f"{predicted:,}"
            rows.append((name, entry.kind, f"{entry.saved_bytes:,}", expected))
        rows.append(("total", "", f"{self.saved_bytes:,}", f"{self.predicted_bytes:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip()
            for a, b, c, d in rows
        ]
        lines.append(
            f"parameters {self.parameter_bytes:,} bytes; peak of forward and backward "
            f"{self.peak_bytes:,} bytes"
        )
        return "\n".join([*lines, *(f"unexpected: {words}" for words in self.unexpected)])


@gradients_enabled()
def audit(model: nn.Module, forward: Callable[[], Tensor]) -> Audit:
    """Reconcile what a converted model should keep with what it does keep.

    `forward()` calls `model`, in training mode, and returns the scalar loss, such as
    `lambda: F.cross_entropy(model(x), y)`. It is run three times, once with a backward pass,
    with gradients on whatever the mode of the caller. The gradients are taken away again, and
    buffers, such as running statistics, put back. A module's bytes are those first kept while its
    forward runs: what several modules share counts with the first.
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
        raise UsageError(
            "the audit saw no RAD layer at work: convert the model (rad.convert), put it in "
            "training mode, and let forward() call it and return the loss"
        )
    modules = {name: module for module, name in names.items()}
    entries: dict[tuple[str, str], int] = defaultdict(int)
    saved: dict[str, int] = defaultdict(int)
    for holding in held:
        name = names.get(holding.place, "")
        kind = _kind(holding)
        entries[name, kind] += holding.nbytes
        if kind != "output":
            saved[name] += holding.nbytes
    with _buffers_put_back(model), _gradients_apart(model):
        peak = peak_bytes(lambda: loss().backward())
    return Audit(
        entries=tuple(Entry(name, kind, size) for (name, kind), size in entries.items()),
        predicted=dict(predicted),
        saved=dict(saved),
        unexpected=tuple(_unexpected(held, names, modules, predicted, saved)),
        parameter_bytes=parameter_bytes(model),
        peak_bytes=peak,
        also=_further_names(model),
    )


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

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        stack.pop()
        if kind_of(module) in RAD_LAYERS and torch.is_grad_enabled():
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if module.training and any(tensor.requires_grad for tensor in tensors):
                x = args[0] if args else next(iter(keywords.values()))
                predicted[names[module]] += module.kept_bytes(x, output, exact)  # type: ignore[operator]

    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kind(holding: Holding) -> str:
    module = holding.place
    if module is None:
        return "output"
    if kind_of(module) not in RAD_LAYERS or not module.training:
        return "exact"
    if not isinstance(module, Sketching):
        return "exact" if holding.dtype.is_floating_point else "mask"
    if isinstance(module, RNN) and holding.dtype == torch.uint8 and len(holding.shape) != 2:
        return "mask"  # codes have two axes: steps, and those of a step
    is_exact = isinstance(module.sketch, Identity) or not module.sketches_now()
    return "exact" if is_exact else "sketch"


def _unexpected(
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
            yield (
                f"`{name}` ({type(modules[name]).__name__}) keeps {size:,} bytes where "
                f"{predicted[name]:,} are predicted"
            )
    for holding in held:
        module = holding.place
        if module is None or (kind_of(module) in RAD_LAYERS and module.training):
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
            call = f"{holding.operator}{holding.call}"
            remedy = MODULE_OF_NODE.get(holding.operator)
            advice = f"make it a torch.nn.{remedy} module" if remedy else "no RAD layer does this"
            yield f"`{call}` is functional, in {where}, and keeps {kept}: {advice}"
    for module, size in by_layers.items():
        kind = type(module).__name__
        why = (
            "rad.convert(..., path=) rounds it"
            if kind_of(module) in NORMS
            else "it has no RAD layer"
        )
        yield f"`{names[module]}` ({kind}) keeps {size:,} bytes: {why}"


def _is_one_layer(module: nn.Module) -> bool:
    """Whether what the module keeps is that of a layer, not of calls in a forward of its own.

    So it is of torch's layers, of subclasses of those that have RAD layers, and of whatever has
    neither parameters nor submodules.
    """
    composed, weighted = any(module.children()), any(True for _ in module.parameters(False))
    if isinstance(module, tuple(LAYERS)) or not (composed or weighted):
        return True
    return type(module).__module__.startswith("torch.nn.") and (weighted or not composed)
