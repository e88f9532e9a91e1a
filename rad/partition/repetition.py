"""What stays exact, and can be calculated again from what its last product reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rad.partition.costs import is_product
from rad.partition.crossings import Crossing

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
    return [_repetition(found, products) for products in by_products if products]


def _repetition(found: Sequence[Crossing], products: frozenset[fx.Node]) -> Repetition:
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
    return Repetition(frozenset(node.name for node in nodes), frozenset(spared))


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
