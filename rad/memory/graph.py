"""What an autograd graph keeps alive for its backward pass, storage by storage."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Holding:
    """One storage that the graph keeps, and who kept it first.

    `place` is what `where()` said when it was saved, None for a tensor put on the context
    of a Python function, which no hook sees. `operator` is the name of the graph's node,
    such as `relu`, and `call` its number among the nodes of that name, from 1, in the order of
    the forward pass; `source` is the module in which a Python function is defined, empty for
    torch's own. Shape and dtype are those of the tensor saved, `nbytes` the storage's.
    """

    place: Any
    operator: str
    call: int
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Autograd records inside, under `torch.no_grad()` and `torch.inference_mode()`, too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class _Box:
    """A saved tensor in a box that dies with the graph node holding it.

    Detached, where it is of a graph: an operator's own output leads back to its node, which holds
    the box, in a circle that no garbage collector sees. Autograd joins what is unpacked to its
    graph again.
    """

    __slots__ = ("__weakref__", "is_parameter", "place", "tensor")

    def __init__(self, tensor: Tensor, place: Any) -> None:
        self.is_parameter = _is_parameter(tensor)
        self.tensor = tensor if tensor.grad_fn is None else tensor.detach()
        self.place = place


def holdings(forward: Callable[[], Any], where: Callable[[], Any]) -> tuple[Holding, ...]:
    """The storages that the graph of `forward()` keeps alive, in the order they were saved.

    What counts is as in `kept_storages`. `where` is called at every saving. What activation
    checkpointing would recompute is recomputed once, to look for the operators.
    """
    kept, nodes, output = kept_storages(forward, where)
    owners = _owners(nodes)
    del output  # a Python function's node is alive while its output is
    return tuple(
        Holding(
            place,
            *owners.get(name, ("unknown", 1, "")),
            tuple(tensor.shape),
            tensor.dtype,
            tensor.untyped_storage().nbytes(),
        )
        for name, (tensor, place) in kept.items()
    )


def kept_storages(
    forward: Callable[[], Any], where: Callable[[], Any] = lambda: None
) -> tuple[dict[int, tuple[Tensor, Any]], list[Node], Any]:
    """For each storage kept a tensor on it and what `where()` said; the nodes in order; the output.

    Unique storages of all tensors that living nodes saved, and of tensors that are attributes
    of the contexts of Python functions; a view counts with its whole storage. Parameters are
    excluded. `forward` returns any nest of tensors.
    """
    boxes: list[weakref.ref[_Box]] = []

    def pack(tensor: Tensor) -> _Box:
        box = _Box(tensor, where())
        boxes.append(weakref.ref(box))
        return box

    with gradients_enabled(), saved_tensors_hooks(pack, lambda box: box.tensor):
        output = forward()
    nodes = sorted(_nodes(output), key=lambda node: node._sequence_nr())
    living = [box for reference in boxes if (box := reference()) is not None]
    saved = [(box.tensor, box.place) for box in living]
    attributes = [tensor for node in nodes for tensor in _attributes(node)]
    saved += [(tensor, None) for tensor in attributes]
    leaves = [node.variable for node in nodes if hasattr(node, "variable")]
    parameters = {storage(t) for t in [*leaves, *attributes] if _is_parameter(t)}
    parameters |= {storage(box.tensor) for box in living if box.is_parameter}
    kept: dict[int, tuple[Tensor, Any]] = {}
    for tensor, place in saved:
        if storage(tensor) not in parameters:
            kept.setdefault(storage(tensor), (tensor, place))
    return kept, nodes, output


def storage(tensor: Tensor) -> int:
    """What identifies a tensor's storage."""
    return tensor.untyped_storage()._cdata


def tensors_in(nest: Any) -> Iterator[Tensor]:
    """The tensors in a nest of tuples, lists, mappings and dataclasses."""
    for leaf in tree_leaves(nest):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(list(leaf.values()))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, field.name) for field in fields(leaf)])


def _is_parameter(tensor: Tensor) -> bool:
    base = tensor if tensor._base is None else tensor._base
    return isinstance(base, nn.Parameter)


def _nodes(output: Any) -> Iterator[Node]:
    """Every node of the graph behind a nest of tensors, and of graphs that its nodes hold."""
    waiting = [tensor.grad_fn for tensor in tensors_in(output)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions]
            waiting += [leaf for leaf in _leaves(node) if isinstance(leaf, Node)]


def _owners(nodes: Iterable[Node]) -> dict[int, tuple[str, int, str]]:
    """For each saved storage the first node that keeps it: its operator, call's number, source."""
    calls: dict[str, int] = {}
    owners: dict[int, tuple[str, int, str]] = {}
    for node in nodes:
        operator = _operator(node)
        calls[operator] = calls.get(operator, 0) + 1
        for tensor in (*_saved_by(node), *_attributes(node)):
            owners.setdefault(storage(tensor), (operator, calls[operator], _source(node)))
    return owners


def _operator(node: Node) -> str:
    """`relu` of ReluBackward0, `max_pool2d_with_indices` of MaxPool2DWithIndicesBackward0."""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    words = re.sub(r"(?<=[a-z0-9])([A-Z])(?=[a-z])", r"_\1", name)
    return words.lower().strip("_")


def _source(node: Node) -> str:
    """The module that defines the Python function of a node; empty for torch's own."""
    function = getattr(type(node), "_forward_cls", None)
    return "" if function is None else str(function.__module__)


def _saved_by(node: Node) -> Iterator[Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_")]
    kept: Any = [getattr(node, name) for name in names]
    for leaf in tree_leaves([kept, getattr(node, "saved_tensors", ())]):
        if isinstance(leaf, Tensor):
            yield leaf


def _attributes(node: Node) -> Iterator[Tensor]:
    """Tensors among the attributes of a Python function's context, which no hook sees."""
    yield from (leaf for leaf in _leaves(node) if isinstance(leaf, Tensor))


def _leaves(node: Node) -> list[Any]:
    """What a Python function put on its context."""
    return tree_leaves(list(getattr(node, "__dict__", {}).values()))
