"""What a division of a graph costs in time: what is calculated twice, and what is sketched.

Counted in the operations of a matrix product (a multiplication or an addition each), so that a plan
depends on no clock: the same graph is divided in the same way wherever it is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rad.partition.bits import Bits
from rad.partition.sketched_graph import Storage

OF_A_SKETCH = 240
"""Operations in whose time a number is kept in a sketch and read: about 2.5 ns in a profile of one
compiled step on a CPU thread, whose matrix products make some 94 a ns. This and the constants below
are estimates; results/partition has predicted and measured times beside each other."""

OF_A_BIT = 60
"""The same for a truth value."""

OF_A_FUNCTION, OF_AN_ELEMENT = 200, 20
"""The same for a number that is calculated elementwise: by a function such as erf, or otherwise."""

aten = torch.ops.aten
_FUNCTIONS = {
    *(aten.erf, aten.exp, aten.log, aten.pow, aten.rsqrt, aten.sigmoid, aten.sqrt, aten.tanh),
    *(
        aten.cos,
        aten.sin,
        aten.log1p,
        aten.expm1,
        aten.erfc,
        aten.gelu,
        aten.silu,
        aten.native_dropout,
    ),
}


_LIKE = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Operators that torch's counter of operations does not know, and those that do the same."""


def is_product(node: fx.Node) -> bool:
    """Whether a node is a matrix product, a convolution or attention, or a gradient of one."""
    packet: Any = getattr(node.target, "overloadpacket", None)
    return _LIKE.get(packet, packet) in flop_registry


def operations(nodes: Iterable[fx.Node]) -> int:
    """Those of nodes of a graph that were traced on fake tensors."""
    return sum(map(_of_node, nodes))


def repeated(forward: fx.GraphModule, backward: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes of the backward pass that calculate again what the forward pass has calculated."""
    names = {node.name for node in forward.graph.nodes if node.op == "call_function"}
    return (n for n in backward.graph.nodes if n.op == "call_function" and n.name in names)


def of_sketches(stored: Iterable[Storage]) -> int:
    """What it takes to keep and to read them."""
    return sum(
        each.crossing.value.numel() * len(each.crossing.groups or []) * _of_number(each.sketch)
        for each in stored
    )


def _of_number(sketch: object) -> int:
    return OF_A_BIT if isinstance(sketch, Bits) else OF_A_SKETCH


def _of_node(node: fx.Node) -> int:
    value: Any = node.meta.get("val")
    packet: Any = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet is None:
        return 0
    if is_product(node):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
        return int(flop_registry[_LIKE.get(packet, packet)](*args, **kwargs, out_val=value))
    tensors = [each for each in tree_leaves(value) if isinstance(each, Tensor)]
    if not tensors or getattr(node.target, "is_view", False):
        return 0
    return max(each.numel() for each in tensors) * (
        OF_A_FUNCTION if packet in _FUNCTIONS else OF_AN_ELEMENT
    )
