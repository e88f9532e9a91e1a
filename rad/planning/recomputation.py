"""Modules that a plan recomputes in the backward pass, in place of keeping what is inside them.

That is exact and takes the time of another forward pass of theirs. Eligible are modules made of
others that run once in a pass and keep much more than they are given; a module that keeps more than
`LARGEST` of all would stand in memory almost whole when it runs again, and is left to its parts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from rad.memory.budget import largest_within
from rad.memory.graph import gradients_enabled, kept_storages, storage
from rad.nn.layer_io import watching
from rad.nn.recomputing import recompute, stop_recomputing
from rad.planning.probe import Trial

LARGEST = 1 / 3
"""Of all saved bytes: what a recomputed module may have kept."""

LEAST = 1 / 2
"""Of what a module has kept: what recomputing it must save."""

ROUNDING = 1e-4
"""By how much gradients may differ, relative to their norm, from the order of sums alone."""


@dataclass(frozen=True)
class Unit:
    """A module to recompute: the bytes that it saves, and the seconds of its forward pass."""

    name: str
    nbytes: int
    seconds: float


def units(trial: Trial) -> list[Unit]:
    """What may be recomputed, the most bytes for a second first; none of them inside another."""
    seen = trial.once(_watched)
    total = sum(seen.kept.values())
    found = list(_units(trial.model, "", seen, total))
    return sorted(found, key=lambda unit: -unit.nbytes / unit.seconds)


def fewest_within(trial: Trial, limit: int) -> tuple[str, ...] | None:
    """As few of the units as meet the limit if all else is exact; None where not even all do."""
    offered = units(trial)
    counts = range(len(offered), -1, -1)

    def needed(count: int) -> int:
        with _recomputed(trial.model, [unit.name for unit in offered[:count]]):
            return trial.exact_bytes()

    count = largest_within(counts, needed, limit)
    return None if count is None else tuple(unit.name for unit in offered[:count])


def all_units(trial: Trial) -> tuple[str, ...]:
    """The names of all that may be recomputed."""
    return tuple(unit.name for unit in units(trial))


def is_faithful(trial: Trial) -> bool:
    """Whether the trial's recomputed modules give the gradient that they give when they are not.

    A module that changes what it is given or draws numbers by its own means does not.
    """
    modules = [trial.model.get_submodule(name) for name in trial.recomputed]
    try:
        found = trial.exact_gradient()
    except (CheckpointError, RuntimeError):
        return False
    for module in modules:
        stop_recomputing(module)
    try:
        expected = trial.exact_gradient()
    finally:
        for module in modules:
            recompute(module)
    return bool((found - expected).norm() <= ROUNDING * expected.norm())


@contextmanager
def _recomputed(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Those modules are recomputed inside, in place."""
    modules = [model.get_submodule(name) for name in names]
    for module in modules:
        recompute(module)
    try:
        yield
    finally:
        for module in modules:
            stop_recomputing(module)


@dataclass
class _Seen:
    """Of a pass: bytes first kept while a module ran and none inside it, bytes of the tensors that
    it was given, seconds, and its calls."""

    kept: Counter[nn.Module] = field(default_factory=Counter)
    given: dict[nn.Module, int] = field(default_factory=dict)
    seconds: dict[nn.Module, float] = field(default_factory=dict)
    calls: Counter[nn.Module] = field(default_factory=Counter)


def _units(module: nn.Module, prefix: str, seen: _Seen, total: int) -> Iterator[Unit]:
    for own, child in module.named_children():
        name = f"{prefix}.{own}" if prefix else own
        unit = _unit(child, name, seen, total)
        if unit is None:
            yield from _units(child, name, seen, total)
        else:
            yield unit


def _unit(module: nn.Module, name: str, seen: _Seen, total: int) -> Unit | None:
    kept = sum(seen.kept.get(part, 0) for part in set(module.modules()))
    saved = kept - seen.given.get(module, 0)
    is_composed = any(module.children()) and "forward" not in vars(module)
    runs_once = seen.calls.get(module) == 1 and module.training
    if not (is_composed and runs_once) or kept > LARGEST * total or saved < LEAST * kept:
        return None
    return Unit(name, saved, seen.seconds[module]) if saved > 0 else None


def _watched(trial: Trial) -> _Seen:
    """What the modules of the exact model keep in one pass, and take in another."""
    with _watching(trial.model) as (_, stack):
        kept, _, _ = kept_storages(trial.exact_loss, lambda: stack[-1][0] if stack else None)
    with gradients_enabled(), _watching(trial.model) as (seen, _):
        trial.exact_loss()
    for tensor, module in kept.values():
        if module is not None:
            seen.kept[module] += tensor.untyped_storage().nbytes()
    return seen


@contextmanager
def _watching(model: nn.Module) -> Iterator[tuple[_Seen, list[tuple[nn.Module, float]]]]:
    """What is seen inside, and the modules that run now, with when they began, innermost last."""
    seen = _Seen()
    stack: list[tuple[nn.Module, float]] = []

    def enter(module: nn.Module, args: Any, keywords: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
        sizes = {storage(t): t.untyped_storage().nbytes() for t in tensors}
        seen.given[module] = sum(sizes.values())
        seen.calls[module] += 1
        stack.append((module, time.perf_counter()))

    def leave(module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        seen.seconds[module] = time.perf_counter() - stack.pop()[1]

    with watching(model.modules(), enter, leave):
        yield seen, stack
