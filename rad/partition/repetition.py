"""What stays exact, and can be calculated again from what its last product reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rad.partition.costs import is_product
from rad.partition.crossings import Crossing, changed, is_drawn

SMALL = 8
"""Values of fewer bytes than this part of the largest are not worth it."""


@dataclass(frozen=True)
class Repetition:
    """Nodes to be calculated again, by name as graphs are copied: products, and what follows.

    `spared` are the crossings that then take no sketch: what follows, and what the products are
    calculated from, in whose place something of the size is kept exactly.
    """

    nodes: frozenset[str]
    spared: frozenset[str]


def repetitions(found: Sequence[Crossing]) -> list[Repetition]:
    """Those of the values that cannot be sketched, in the order of the graph."""
    exact = [each for each in found if each.groups is None]
    most = max((each.nbytes for each in exact), default=0)
    large = [each for each in exact if SMALL * each.nbytes >= most]
    by_products = dict.fromkeys(_products(each.node) for each in large)
    return [
        each
        for products in by_products
        if products and (each := _repetition(found, products)) is not None
    ]


def _repetition(found: Sequence[Crossing], products: frozenset[fx.Node]) -> Repetition | None:
    """None where the forward pass changes an input of it, which backward would find changed.

    Draws are not made again.
    """
    read = set(_back_to_products(each for node in products for each in node.all_input_nodes))
    nodes, spared = set(products), set[str]()
    for each in found:
        own = _products(each.node)
        if own and own <= products:
            nodes |= set(_back_to_products(each.values))
        elif each.node in read:
            nodes |= {node for chain in each.affine.values() for node in chain}
        else:
            continue
        spared.add(each.node.name)
    written = changed(next(iter(products)).graph)
    if any(each in written for node in nodes for each in node.all_input_nodes):
        return None
    names = frozenset(node.name for node in nodes if not is_drawn(node))
    return Repetition(names, frozenset(spared))


def _products(node: fx.Node) -> frozenset[fx.Node]:
    """The last products from which a node follows."""
    return frozenset(filter(is_product, _back_to_products([node])))


def _back_to_products(starts: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes from which some follow, up to and with the first products; with themselves."""
    seen: dict[fx.Node, None] = {}
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node in seen or node.op != "call_function":
            continue
        seen[node] = None
        if not is_product(node):
            waiting += node.all_input_nodes
    return list(seen)


def with_repetition(graph: fx.Graph, names: Collection[str]) -> None:
    """Let the backward pass calculate those nodes again."""
    for node in graph.nodes:
        if node.name in names:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
