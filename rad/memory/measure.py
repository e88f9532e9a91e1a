"""Measured memory: saved bytes and peak bytes.

*Saved bytes* are what autograd keeps between forward and backward; *peak bytes*
are everything allocated at the worst moment.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils._pytree import tree_leaves


class _Held:
    """A saved tensor in a box that dies with the graph node holding it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters of a model, shared ones once."""
    return _storage_bytes(model.parameters())


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes that the autograd graph of `forward()` keeps alive for backward.

    `forward` returns the loss, or any nest of tensors. Counted are the unique
    storages of all tensors that living nodes of the graph saved, and of tensors put
    as attributes on the contexts of Python functions; a view counts with its whole
    storage. `torch.nn.Parameter`s are excluded, and so is what only the caller
    refers to. What activation checkpointing recomputes is not kept and not counted.
    """
    boxes: list[weakref.ref[_Held]] = []

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor)
        boxes.append(weakref.ref(held))
        return held

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda held: held.tensor):
        output = forward()
    nodes = list(_nodes(output))
    saved = [held.tensor for box in boxes if (held := box()) is not None]
    saved += [tensor for node in nodes for tensor in _attributes(node)]
    leaves = [node.variable for node in nodes if hasattr(node, "variable")]
    parameters = {_storage(t) for t in [*leaves, *saved] if _is_parameter(t)}
    return _storage_bytes(t for t in saved if _storage(t) not in parameters)


def _is_parameter(tensor: Tensor) -> bool:
    base = tensor if tensor._base is None else tensor._base
    return isinstance(base, nn.Parameter)


def _nodes(output: Any) -> Iterator[Node]:
    """Every node of the graph behind a nest of tensors."""
    waiting = [t.grad_fn for t in tree_leaves(output) if isinstance(t, Tensor)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions]


def _attributes(node: Node) -> Iterator[Tensor]:
    """Tensors among the attributes of a Python function's context, which no hook sees."""
    for leaf in tree_leaves(list(getattr(node, "__dict__", {}).values())):
        if isinstance(leaf, Tensor):
            yield leaf


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({_storage(t): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes allocated at any moment of `step()`, beyond those allocated before it.

    On CUDA by the caching allocator's statistics; on the CPU by torch's profiler,
    which records every allocation of the CPU allocator, those within operators
    included. Device memory counts where `step` allocates any.
    """
    if not torch.cuda.is_available():
        return _peak_cpu_bytes(step)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    count = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    torch.cuda.reset_peak_memory_stats()
    on_cpu = _peak_cpu_bytes(step)
    torch.cuda.synchronize()
    if torch.cuda.memory_stats().get("allocation.all.allocated", 0) == count:
        return on_cpu
    return torch.cuda.max_memory_allocated() - before


def _peak_cpu_bytes(step: Callable[[], Any]) -> int:
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with (
        _quiet_profiler(),
        torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as run,
    ):
        kept = step()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        run.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event["name"] == "[memory]" and event["args"]["Device Type"] == 0
    ]
    peak = held = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keeps the profiler from reporting on stderr that a machine has no GPU."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
