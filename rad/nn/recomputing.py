"""Modules that keep their inputs alone, and run again in the backward pass (checkpointing).

`recompute` gives a module a class over its own, whose forward pass is torch's non-reentrant
checkpoint around the module's: exact, for the time of another forward pass. Random numbers and
buffers (running statistics, power iterations) are in the second run those of the first, and after
it as the first left them. In evaluation mode and without gradients a module runs as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from rad.backends import is_readable
from rad.errors import UsageError
from rad.nn.base import keeps_now
from rad.nn.kinds import RECOMPUTES
from rad.nn.overlay import class_over, take_off
from rad.nn.serving import as_torch

CHANGING = "rad_changing"
"""Name in a recomputed module: which buffers its forward pass changes, once one has been run."""

_Buffers = dict[str, tuple[nn.Module, str, Tensor]]
"""By dotted name: the module that has a buffer, the name there, and the buffer."""

_Before = list[tuple[nn.Module, str, Tensor]]
"""Buffers that a forward pass has changed, with a copy of what they were before it."""


def recompute(module: nn.Module) -> None:
    """Keep a module's inputs alone from now on. Raises UsageError for a replaced `forward`."""
    if is_recomputed(module):
        return
    if "forward" in vars(module):
        raise UsageError(
            f"a {type(module).__name__} whose forward was replaced by a function cannot be "
            "recomputed: give it a class with that forward, or leave it out of recomputed="
        )
    kind: Any = type(module)
    module.__class__ = _over(kind)


def stop_recomputing(module: nn.Module) -> None:
    """Give a recomputed module its own class again.

    Raises UsageError where torch has made a class over that which recomputes.
    """
    take_off(module, RECOMPUTES, "a module cannot be taken out of recomputation")
    vars(module).pop(CHANGING, None)


def is_recomputed(module: nn.Module) -> bool:
    """Whether `recompute` gave the module its class."""
    return hasattr(type(module), RECOMPUTES)


def within_recomputed(model: nn.Module) -> set[nn.Module]:
    """The recomputed modules of a model, and all modules inside them."""
    return {
        each for module in model.modules() if is_recomputed(module) for each in module.modules()
    }


@cache
def _over(base: Any) -> Any:
    return class_over(base, RECOMPUTES, _recomputed, _new)


def _new(base: Any) -> nn.Module:
    """An instance without contents of the class over `base`, as pickling and copying make it."""
    kind = _over(base)
    return kind.__new__(kind)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not keeps_now(self):
            return as_torch(partial(forward, self, *args, **kwargs))
        args, kwargs = _without_caches(self, args, kwargs)
        if torch.compiler.is_compiling():
            return checkpoint(partial(forward, self), *args, use_reentrant=False, **kwargs)
        leaves, nest = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[place] for place in places]
        for place in places:  # the checkpoint holds them, where measurements see them
            leaves[place] = None
        as_given = [(args, kwargs)]  # for the first run: lists that it may fill

        def again(*tensors: Tensor) -> Any:
            if as_given:
                positional, keywords = as_given.pop()
            else:
                given = list(leaves)
                for place, tensor in zip(places, tensors, strict=True):
                    given[place] = tensor
                positional, keywords = tree_unflatten(given, nest)
            return forward(self, *positional, **keywords)

        return as_torch(partial(_kept_apart, self, again, tensors))

    return run


def _without_caches(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without caches of keys and values, as blocks of the transformers library get.

    Nobody reads them in training, and a second run would fill them once more: that library leaves
    them out of its checkpoints, too. Raises UsageError for a cache that holds something of this
    block's layers already.
    """
    caches = [value for value in (*args, *kwargs.values()) if _is_cache(value)]
    if not caches:
        return args, kwargs
    layers = {part.layer_idx for part in module.modules() if hasattr(part, "layer_idx")}
    if any(cache.get_seq_length(layer) for cache in caches for layer in layers):
        raise UsageError(
            "a cache holds keys and values already, which a recomputed block cannot add to: train "
            "without one (use_cache=False)"
        )
    args = tuple(None if _is_cache(value) else value for value in args)
    kwargs = {name: None if _is_cache(value) else value for name, value in kwargs.items()}
    return args, kwargs | ({"use_cache": False} if "use_cache" in kwargs else {})


def _is_cache(value: Any) -> bool:
    library = sys.modules.get("transformers.cache_utils")
    return library is not None and isinstance(value, library.Cache)


def _kept_apart(module: nn.Module, forward: Callable[..., Any], tensors: list[Tensor]) -> Any:
    """The checkpoint, which finds the buffers in its second run as they were before the first."""
    before: _Before = []

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _AsBefore(before)

    buffers = _buffers(module)
    known = vars(module).get(CHANGING)
    copied = {name: buffers[name][2].clone() for name in (buffers if known is None else known)}
    versions = {name: buffer._version for name, (_, _, buffer) in buffers.items()}
    output = checkpoint(forward, *tensors, use_reentrant=False, context_fn=contexts)
    changed = _changed(buffers, versions, copied)
    if known is None:
        vars(module)[CHANGING] = changed
    elif changed - known:
        raise RuntimeError(
            f"the buffer {min(changed - known)!r} of a recomputed {type(module).__name__} changed, "
            "which it did not in the first pass: what it was is not known any more; leave the "
            "module out of recomputed="
        )
    before += [(*buffers[name][:2], copied[name]) for name in sorted(changed)]
    return output


def _buffers(module: nn.Module) -> _Buffers:
    return {
        f"{prefix}.{name}": (part, name, buffer)
        for prefix, part in module.named_modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    }


def _changed(
    buffers: _Buffers, versions: dict[str, int], copied: dict[str, Tensor]
) -> frozenset[str]:
    """Those that are other tensors than before, or hold other numbers (fakes: were written to).

    Kernels of running statistics write past version counters: of copied ones numbers decide.
    """
    found = set()
    for name, (module, own, buffer) in buffers.items():
        now = module._buffers[own]
        if now is not buffer:
            found.add(name)
        elif name in copied and is_readable(buffer):
            if not torch.equal(copied[name], buffer):
                found.add(name)
        elif buffer._version != versions[name]:
            found.add(name)
    return frozenset(found)


class _AsBefore(AbstractContextManager[None]):
    """The buffers are those of before inside, in tensors that are given up afterwards.

    May be entered again, as a graph that is kept recomputes more than once.
    """

    def __init__(self, before: _Before) -> None:
        self._before = before
        self._now: list[Tensor | None] = []

    def __enter__(self) -> None:
        self._now = [module._buffers[name] for module, name, _ in self._before]
        for module, name, numbers in self._before:
            module._buffers[name] = numbers.clone()

    def __exit__(self, *exception: object) -> None:
        for (module, name, _), buffer in zip(self._before, self._now, strict=True):
            module._buffers[name] = buffer
