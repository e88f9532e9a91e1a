"""What crosses from the forward to the backward pass of a joint graph, and how it is used there."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from rad.partition.linearity import degree

aten = torch.ops.aten

MOST_DRAWS = 2
"""Independent sketches of one value at most: more would take as much as the value."""


@dataclass(eq=False)
class Crossing:
    """A value of the forward pass that nodes of the backward pass read.

    `groups` holds these nodes such that every gradient is of degree one at most in what each group
    reads: a sketch for each group, drawn independently, makes unbiased gradients. None where there
    is no such division into few groups, and then `reason` says why. Truth values are one group.

    `affine` are other values that nodes of the backward pass read, each with the nodes that lead to
    it from this one: copies, and sums and products with parameters. Their readers are among the
    `users`, since a sketch of this value serves them, too.
    """

    node: fx.Node
    groups: list[list[fx.Node]] | None
    reason: str = ""
    users: list[fx.Node] = field(default_factory=list)
    affine: Mapping[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)

    @property
    def values(self) -> tuple[fx.Node, ...]:
        """What its users read."""
        return (self.node, *self.affine)

    @property
    def value(self) -> Tensor:
        """A fake tensor of its shape and dtype."""
        value: Tensor = self.node.meta["val"]
        return value

    @property
    def nbytes(self) -> int:
        whole = self.value.numel() * self.value.element_size()
        return min(whole, self.value.untyped_storage().nbytes())


def is_tangent(node: fx.Node) -> bool:
    """Whether a node is a gradient that the backward pass is given."""
    return node.op == "placeholder" and "tangents" in str(node.target)


def backward_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on a gradient."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_tangent(node) or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def lasting(graph: fx.Graph, fixed: Collection[int]) -> set[fx.Node]:
    """Parameters, buffers, constants, and what is made of these alone and without draws.

    `fixed` are the places of the inputs that are parameters or buffers. One that the forward pass
    changes is not among them, since the backward pass would find it changed.
    """
    written = changed(graph)
    places = {node: place for place, node in enumerate(graph.find_nodes(op="placeholder"))}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node in places:
            is_given = places[node] in fixed and node not in written
        else:
            is_given = not is_drawn(node) and all(each in found for each in inputs)
        if is_given:
            found.add(node)
    return found


def changed(graph: fx.Graph) -> set[fx.Node]:
    """The inputs that the graph writes to."""
    nodes = graph.find_nodes(op="call_function", target=aten.copy_.default)
    return {node.args[0] for node in nodes if isinstance(node.args[0], fx.Node)}


def is_drawn(node: fx.Node) -> bool:
    """Whether a node draws from a generator."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def crossings(graph: fx.Graph, fixed: Collection[int] = ()) -> list[Crossing]:
    """The tensors of floating-point numbers or truth values that cross, in the order of the graph.

    `fixed` are the places of the inputs that are parameters or buffers. Values that are affine in
    one value are one crossing where that takes fewer sketches.
    """
    backward, free = backward_nodes(graph), lasting(graph, fixed)
    (output,) = (node for node in graph.nodes if node.op == "output")
    alike: dict[fx.Node, list[tuple[fx.Node, tuple[fx.Node, ...], list[fx.Node]]]] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        users = [user for user in node.users if user in backward and user is not output]
        kept = isinstance(value, Tensor) and (value.is_floating_point() or is_truth(value))
        if users and kept and node not in backward and node not in free:
            root, chain = _affine_from(node, free)
            alike.setdefault(root, []).append((node, chain, users))
    found = []
    for root, members in alike.items():
        apart = [_crossing({node: ()}, users) for node, _, users in members]
        readers = {user for _, _, users in members for user in users}
        as_one = _crossing({root: ()} | {node: chain for node, chain, _ in members}, readers)
        is_less = _numbers(as_one) < sum(map(_numbers, apart))
        found += [as_one] if is_less or is_truth(as_one.value) else apart
    return sorted(found, key=lambda each: each.node)


def is_truth(value: Tensor) -> bool:
    """Whether a tensor holds truth values, which are kept exactly whatever reads them."""
    return value.dtype == torch.bool


def _numbers(crossing: Crossing) -> float:
    """How many would be sketched."""
    draws = math.inf if crossing.groups is None else len(crossing.groups)
    return draws * crossing.value.numel() if crossing.value.numel() else 0


def _affine_from(node: fx.Node, free: Collection[fx.Node]) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The first value, no larger, from which cheap affine steps lead to a node, and the steps."""
    chain: tuple[fx.Node, ...] = ()
    while getattr(node.target, "overloadpacket", None) in _CHEAP:
        inputs = [each for each in node.all_input_nodes if each not in free]
        if len(inputs) != 1 or degree(node, {inputs[0]: 1}) != 1:
            break
        before, after = inputs[0].meta.get("val"), node.meta["val"]
        if not isinstance(before, Tensor) or before.numel() > after.numel():
            break
        if not (before.is_floating_point() or is_truth(before)):
            break
        chain, node = (node, *chain), inputs[0]
    return node, chain


_CHEAP = {
    *(aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.view, aten._unsafe_view, aten.reshape),
    *(aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze, aten.expand, aten.clone),
    *(aten.alias, aten.slice, aten.select, aten._to_copy, torch.ops.prims.convert_element_type),
}
"""What is calculated again from a sketch rather than kept as another."""


def _crossing(
    affine: Mapping[fx.Node, tuple[fx.Node, ...]], readers: Iterable[fx.Node]
) -> Crossing:
    """That of the first of the values, from which the others follow."""
    users = sorted(readers)
    node = next(iter(affine))
    rest = {value: chain for value, chain in affine.items() if value is not node}
    if is_truth(node.meta["val"]):
        return Crossing(node, [users], "", users, rest)
    groups: list[list[fx.Node]] = []
    for user in users:
        culprit = _first_above(affine, [user])
        if culprit is not None:
            reason = f"{operator_of(culprit)} is not linear in it"
            return Crossing(node, None, reason, users, rest)
        for group in groups:
            if _first_above(affine, [*group, user]) is None:
                group.append(user)
                break
        else:
            groups.append([user])
    if len(groups) > MOST_DRAWS:
        reason = f"it would take {len(groups)} independent sketches"
        return Crossing(node, None, reason, users, rest)
    return Crossing(node, groups, "", users, rest)


def degrees(values: Iterable[fx.Node], readers: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """The nodes that depend on what the readers read of some values, and their degrees in that.

    The values count as one, of degree one each. In the order of the graph, without its output.
    """
    reading, ones = set(readers), dict.fromkeys(values, 1)
    found: dict[fx.Node, int] = {}
    for each in _dependent(reading):
        found[each] = degree(each, ChainMap(ones, found) if each in reading else found)
        yield each, found[each]


def _first_above(values: Iterable[fx.Node], readers: Iterable[fx.Node]) -> fx.Node | None:
    """The first node of a degree above one in what the readers read of values; None for none."""
    return next((each for each, own in degrees(values, readers) if own > 1), None)


def _dependent(starts: set[fx.Node]) -> Iterable[fx.Node]:
    """The nodes that depend on some, in the order of the graph; not its output."""
    reached = set(starts)
    first = next(iter(starts)).graph
    for node in first.nodes:
        if node in reached and node.op != "output":
            yield node
            reached.update(node.users)


def operator_of(node: fx.Node) -> str:
    """The name of the operator that a node calls, whichever overload."""
    return str(getattr(node.target, "overloadpacket", node.target))


def is_short(value: Tensor, least: int) -> bool:
    """Whether a value is too small to gain from a sketch."""
    return value.numel() < least or value.dim() == 0 or value.shape[-1] < 2
