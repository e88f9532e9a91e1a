"""Sketches written into a joint graph: kept in the forward pass, read in the backward pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.reference import fold_in
from rad.partition.crossings import Crossing
from rad.sketches import DitheredRounding

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
def sub_key(key: Tensor, number: int) -> Tensor:
    """The key of one of a graph's sketches."""
    return fold_in(key, number)


@opaque()
def keep_sketch(x: Tensor, key: Tensor, sketch: str) -> list[Tensor]:
    """What the sketch keeps of a tensor of any shape, as rows of at least `ROW` numbers."""
    return list(from_text(sketch).compress(x.reshape(-1, _width(x.shape)), key))


@opaque()
def read_sketch(
    kept: list[Tensor], shape: list[int], dtype: torch.dtype, key: Tensor, sketch: str
) -> Tensor:
    """The estimate of a tensor of that shape and dtype."""
    width = _width(shape)
    rows = (math.prod(shape) // width, width)
    read: Tensor = from_text(sketch).decompress(tuple(kept), rows, dtype, key)
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
    """A crossing that is kept as a sketch."""

    crossing: Crossing
    sketch: DitheredRounding

    @property
    def nbytes(self) -> int:
        """What is kept for all its groups."""
        value, groups = self.crossing.value, self.crossing.groups
        assert groups is not None
        width = _width(value.shape)
        each = self.sketch.nbytes((value.numel() // width, width), value.dtype)
        return len(groups) * each


def with_sketches(graph: fx.Graph, stored: Iterable[Storage], key: fx.Node) -> None:
    """Let the users of each crossing's groups read sketches, in place.

    The sketches draw with sub-keys of `key`, a node of the graph, numbered from 0. What they keep
    is marked as to be saved, and what reads it as to be calculated again in the backward pass.
    """
    number = 0
    for storage in stored:
        groups = storage.crossing.groups
        assert groups is not None
        for group in groups:
            read = _write(graph, storage, key, number)
            for user in group:
                user.replace_input_with(storage.crossing.node, read)
            number += 1


def with_copies(graph: fx.Graph, exact: Iterable[Crossing]) -> None:
    """Let the users of exact values that are parts of larger tensors read copies, in place.

    A part that is saved keeps all of its tensor in memory.
    """
    for crossing in exact:
        if crossing.value.untyped_storage().nbytes() <= crossing.nbytes:
            continue
        with graph.inserting_after(crossing.node):
            copy = _call(graph, torch.ops.aten.clone.default, (crossing.node,))
        copy.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        for user in crossing.users:
            user.replace_input_with(crossing.node, copy)


def _write(graph: fx.Graph, storage: Storage, key: fx.Node, number: int) -> fx.Node:
    node, text = storage.crossing.node, as_text(storage.sketch)
    value, ops = storage.crossing.value, torch.ops.rad
    last = max((node, key), key=list(graph.nodes).index)
    with graph.inserting_after(last):
        own = _call(graph, ops.sub_key.default, (key, number))
    own.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    with graph.inserting_after(own):
        kept = _call(graph, ops.keep_sketch.default, (node, own, text))
    parts, last = [], kept
    for place in range(len(kept.meta["val"])):
        with graph.inserting_after(last):
            last = _call(graph, operator.getitem, (kept, place))
        last.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        parts.append(last)
    arguments = (parts, list(value.shape), value.dtype, own, text)
    with graph.inserting_after(last):
        read = _call(graph, ops.read_sketch.default, arguments)
    read.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    return read


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A call, and the fake tensors that it gives."""
    node = graph.call_function(target, args)
    values: Any = fx.map_arg(args, lambda each: each.meta["val"])
    fakes = [each for each in _leaves(values) if isinstance(each, Tensor)]
    mode = getattr(fakes[0], "fake_mode", None)
    if mode is None:
        node.meta["val"] = target(*values)
    else:
        with mode:
            node.meta["val"] = target(*values)
    return node


def _leaves(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in _leaves(value)]
    return [values]
