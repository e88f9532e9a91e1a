"""What crosses from the forward to the backward pass of a joint graph, and how it is used there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, fx

from rad.partition.linearity import degree

MOST_DRAWS = 2
"""Independent sketches of one value at most: more would take as much as the value."""


@dataclass
class Crossing:
    """A value of the forward pass that nodes of the backward pass read.

    `groups` holds these nodes such that every gradient is of degree one at most in what each group
    reads: a sketch for each group, drawn independently, makes unbiased gradients. None where there
    is no such division into few groups, and then `reason` says why.
    """

    node: fx.Node
    groups: list[list[fx.Node]] | None
    reason: str = ""
    users: list[fx.Node] = field(default_factory=list)

    @property
    def value(self) -> Tensor:
        """A fake tensor of its shape and dtype."""
        value: Tensor = self.node.meta["val"]
        return value

    @property
    def nbytes(self) -> int:
        return self.value.numel() * self.value.element_size()


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
    """What takes no memory of its own: parameters, constants, and what is made of these alone.

    `fixed` are the places of the inputs that are parameters. What is made of them is small beside
    activations, and torch keeps or makes it again as it likes.
    """
    places = {node: place for place, node in enumerate(graph.find_nodes(op="placeholder"))}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        is_given = places[node] in fixed if node in places else not inputs
        if is_given or (inputs and all(each in found for each in inputs)):
            found.add(node)
    return found


def crossings(graph: fx.Graph, fixed: Collection[int] = ()) -> list[Crossing]:
    """The floating-point tensors that cross, in the order of the graph.

    `fixed` are the places of the inputs that are parameters or buffers.
    """
    backward, free = backward_nodes(graph), lasting(graph, fixed)
    (output,) = (node for node in graph.nodes if node.op == "output")
    order = {node: place for place, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node in backward or node in free or node is output:
            continue
        value = node.meta.get("val")
        users = [user for user in node.users if user in backward and user is not output]
        if users and isinstance(value, Tensor) and value.is_floating_point():
            found.append(_crossing(node, sorted(users, key=order.__getitem__)))
    return found


def _crossing(node: fx.Node, users: list[fx.Node]) -> Crossing:
    groups: list[list[fx.Node]] = []
    for user in users:
        culprit = _first_above(node, [user])
        if culprit is not None:
            return Crossing(node, None, f"{operator_of(culprit)} is not linear in it", users)
        for group in groups:
            if _first_above(node, [*group, user]) is None:
                group.append(user)
                break
        else:
            groups.append([user])
    if len(groups) > MOST_DRAWS:
        return Crossing(node, None, f"it would take {len(groups)} independent sketches", users)
    return Crossing(node, groups, "", users)


def degrees(node: fx.Node, readers: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    """The nodes that depend on what the readers read of a value, and their degrees in that.

    In the order of the graph, without its output.
    """
    reading = set(readers)
    found: dict[fx.Node, int] = {}
    for each in _dependent(reading):
        found[each] = degree(each, {**found, node: 1} if each in reading else found)
        yield each, found[each]


def _first_above(node: fx.Node, readers: Iterable[fx.Node]) -> fx.Node | None:
    """The first node of a degree above one in what the readers read of a value; None for none."""
    return next((each for each, own in degrees(node, readers) if own > 1), None)


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
