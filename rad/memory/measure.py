"""Measured memory: saved bytes and peak bytes.

*Saved bytes* are what autograd keeps between forward and backward; *peak bytes*
are everything allocated at the worst moment.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType, profiler

from rad.memory.graph import kept_storages, storage


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters of a model, shared ones once."""
    sizes = {storage(p): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(sizes.values())


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes that the autograd graph of `forward()` keeps alive for backward.

    `forward` returns the loss, or any nest of tensors. Counted are the unique
    storages of all tensors that living nodes of the graph saved, and of tensors put
    as attributes on the contexts of Python functions; a view counts with its whole
    storage. `torch.nn.Parameter`s are excluded, and so is what only the caller
    refers to. What activation checkpointing recomputes is not kept and not counted.
    """
    kept, _, _ = kept_storages(forward)
    return sum(tensor.untyped_storage().nbytes() for tensor, _ in kept.values())


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes allocated at any moment of `step()`, beyond those allocated before it.

    On CUDA by the caching allocator's statistics; on the CPU by torch's profiler,
    which records every allocation of the CPU allocator, those within operators
    included. Device memory counts where `step` allocates any; what cuBLAS keeps for good
    is allocated before. Python collects no garbage meanwhile: whether it would free what was left
    by others, or by the step, depends on how much there was before.
    """
    with _no_collection():
        return _peak_bytes(step)


def _peak_bytes(step: Callable[[], Any]) -> int:
    if not torch.cuda.is_available():
        return _peak_cpu_bytes(step)
    _allocate_workspaces()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    count = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    torch.cuda.reset_peak_memory_stats()
    on_cpu = _peak_cpu_bytes(step)
    torch.cuda.synchronize()
    if torch.cuda.memory_stats().get("allocation.all.allocated", 0) == count:
        return on_cpu
    return torch.cuda.max_memory_allocated() - before


def _allocate_workspaces() -> None:
    """cuBLAS keeps a workspace for each stream and thread that multiplies: this one, autograd's."""
    layer = nn.Linear(8, 8, device="cuda")
    with torch.enable_grad():
        layer(torch.ones(8, 8, device="cuda", requires_grad=True)).sum().backward()


def _peak_cpu_bytes(step: Callable[[], Any]) -> int:
    with _quiet_profiler(), profiler.profile(use_cpu=True, profile_memory=True) as run:
        kept = step()
    del kept
    assert run.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in run.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    vars(run).clear()  # it refers to itself, with all that it recorded
    _return_free_memory()
    peak = held = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


def _return_free_memory() -> None:
    """The profiler frees what it recorded in pieces, which glibc would keep for the process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No automatic garbage collection inside."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
