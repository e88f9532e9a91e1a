"""Sketches written into a joint graph: kept in the forward pass, read in the backward pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.reference import step_keys
from rad.partition.bits import Bits
from rad.partition.crossings import Crossing
from rad.sketches import DitheredRounding

aten = torch.ops.aten

ROW = 64
"""Rows of fewer numbers are joined with the axis before, since each has a grid of its own."""


def copied(graph: fx.Graph) -> fx.Graph:
    """A graph of nodes of its own, with the same names and the same facts about them."""
    copy = fx.Graph()
    result: Any = copy.graph_copy(graph, {}, return_output_node=True)
    arguments, output = result
    copy.output(arguments).meta.update(output.meta)
    return copy


@opaque()
def sub_keys(key: Tensor, count: int) -> Tensor:
    """The keys of a graph's sketches: (count,)."""
    return step_keys(key, count)


@opaque()
def keep_sketch(x: Tensor, keys: Tensor, number: int, sketch: str) -> list[Tensor]:
    """What the sketch of that number keeps of a tensor of any shape, as rows of `ROW` or more."""
    return list(from_text(sketch).compress(x.reshape(-1, _width(x.shape)), keys[number]))


@opaque()
def read_sketch(
    kept: list[Tensor],
    shape: list[int],
    dtype: torch.dtype,
    keys: Tensor,
    number: int,
    sketch: str,
) -> Tensor:
    """The estimate of a tensor of that shape and dtype."""
    width = _width(shape)
    rows = (math.prod(shape) // width, width)
    read: Tensor = from_text(sketch).decompress(tuple(kept), rows, dtype, keys[number])
    return read.reshape(shape)


def _width(shape: Iterable[int]) -> int:
    width = 1
    for size in reversed(tuple(shape)):
        width *= size
        if width >= ROW:
            break
    return width


@dataclass(frozen=True)
class Storage:
    """A crossing that is kept as a sketch, truth values as bits."""

    crossing: Crossing
    sketch: DitheredRounding | Bits

    @property
    def nbytes(self) -> int:
        """What is kept for all its groups."""
        value, groups = self.crossing.value, self.crossing.groups
        assert groups is not None
        width = _width(value.shape)
        each = self.sketch.nbytes((value.numel() // width, width), value.dtype)
        return len(groups) * each


def with_sketches(graph: fx.Graph, stored: Sequence[Storage], key: fx.Node) -> None:
    """Let the users of each crossing's groups read sketches, in place.

    The sketches draw with sub-keys of `key`, a node of the graph, numbered from 0. What they keep
    is marked as to be saved, and what reads it, and what is affine in that, as to be calculated
    again in the backward pass.
    """
    count = sum(len(storage.crossing.groups or []) for storage in stored)
    with graph.inserting_after(key):
        keys = _call(graph, torch.ops.rad.sub_keys.default, (key, count))
    keys.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    number = 0
    for storage in stored:
        crossing = storage.crossing
        assert crossing.groups is not None
        for group in crossing.groups:
            read = _write(graph, storage, keys, number)
            for user in group:
                user.replace_input_with(crossing.node, read)
            for value, chain in crossing.affine.items():
                readers = [user for user in group if value in user.all_input_nodes]
                again = _repeated(graph, chain, crossing.node, read) if readers else value
                for user in readers:
                    user.replace_input_with(value, again)
            number += 1


def _repeated(graph: fx.Graph, chain: Sequence[fx.Node], value: fx.Node, read: fx.Node) -> fx.Node:
    """The last node of a copy of the chain, which reads a sketch in place of the value."""
    copies, after = {value: read}, chain[-1]
    for node in chain:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: copies.get(each, each))
        with graph.inserting_after(after):
            after = _call(graph, node.target, args, kwargs)
        after.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        copies[node] = after
    return after


def with_copies(graph: fx.Graph, exact: Iterable[Crossing]) -> None:
    """Let the users of exact values that are parts of larger tensors read copies, in place.

    A part that is saved keeps all of its tensor in memory.
    """
    for crossing in exact:
        for node in filter(_is_part, crossing.values):
            with graph.inserting_after(node):
                copy = _call(graph, torch.ops.aten.clone.default, (node,))
            copy.meta["recompute"] = CheckpointPolicy.MUST_SAVE
            for user in crossing.users:
                user.replace_input_with(node, copy)


def _is_part(node: fx.Node) -> bool:
    value: Tensor = node.meta["val"]
    return value.untyped_storage().nbytes() > value.numel() * value.element_size()


def _write(graph: fx.Graph, storage: Storage, keys: fx.Node, number: int) -> fx.Node:
    """What reads a sketch, written and read in the order in which the value lies in memory."""
    node, text = storage.crossing.node, as_text(storage.sketch)
    value, ops = storage.crossing.value, torch.ops.rad
    order = sorted(range(value.dim()), key=lambda axis: -value.stride()[axis])
    is_moved = order != list(range(value.dim()))
    shape = tuple(value.shape[axis] for axis in order)

    def fake(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return _with_mode_of(value, lambda: torch.empty(shape, dtype=dtype, device=value.device))

    last = max(node, keys)
    if is_moved:
        with graph.inserting_after(last):
            node = last = _call(graph, aten.permute.default, (node, order))
    with graph.inserting_after(last):
        kept = graph.call_function(ops.keep_sketch.default, (node, keys, number, text))
    kept.meta["val"] = [fake(*part) for part in _parts(shape, value.dtype, text)]
    parts, last = [], kept
    for place, part in enumerate(kept.meta["val"]):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (kept, place))
        last.meta |= {"val": part, "recompute": CheckpointPolicy.MUST_SAVE}
        parts.append(last)
    arguments = (parts, list(shape), value.dtype, keys, number, text)
    with graph.inserting_after(last):
        read = graph.call_function(ops.read_sketch.default, arguments)
    read.meta |= {"val": fake(shape, value.dtype), "recompute": CheckpointPolicy.MUST_RECOMPUTE}
    if is_moved:
        back = sorted(range(len(order)), key=order.__getitem__)
        with graph.inserting_after(read):
            read = _call(graph, aten.permute.default, (read, back))
        read.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    return read


@lru_cache(maxsize=1024)
def _parts(
    shape: tuple[int, ...], dtype: torch.dtype, sketch: str
) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shape and dtype of each tensor that a sketch keeps of one."""
    x, keys = (
        torch.empty(shape, dtype=dtype, device="meta"),
        torch.empty(1, dtype=torch.int64, device="meta"),
    )
    return tuple((tuple(part.shape), part.dtype) for part in keep_sketch(x, keys, 0, sketch))


def _call(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """A call of nodes and numbers, and the fake tensor that it gives."""
    node = graph.call_function(target, args, kwargs)
    fakes: Any = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    value = next(each.meta["val"] for each in node.all_input_nodes)
    node.meta["val"] = _with_mode_of(value, lambda: target(*fakes[0], **fakes[1]))
    return node


def _with_mode_of(value: Tensor, make: Callable[[], Tensor]) -> Tensor:
    mode = getattr(value, "fake_mode", None)
    with nullcontext() if mode is None else mode:
        return make()
