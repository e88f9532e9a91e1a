"""Who reads which tensor of a model: the first pass of a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx, nn

from rad.nn import LAYERS, Sketching

RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
"""Modules that keep nothing and pass the same numbers on."""
_RESHAPE_CALLS = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = type(m) in LAYERS.values()
        return known or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Use:
    """How a ReLU is used: whether a trainable layer that sketches reads its output, and
    whether it is the only reader of such a layer's output."""

    read_by_layer: bool = False
    reads_alone: bool = False


@dataclass(frozen=True)
class Readers:
    """The ReLU modules and how all calls of each are used; the RNN modules of whose outputs
    only the last state is read."""

    relus: dict[nn.Module, Use]
    unread_sequences: set[nn.Module]


def read_graph(model: nn.Module) -> Readers:
    """Who reads what, as far as the model can be traced.

    Of a model that cannot be (control flow on values), nothing is known: packed masks,
    nothing in place and whole sequences are right everywhere.
    """
    try:
        graph = Tracer().trace(model)
    except Exception:  # whatever forward may raise on proxies
        return Readers({}, set())
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: dict[nn.Module, Use] = {}
    sequence_read: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.ReLU):
            before, use = uses.get(module, Use(True, True)), _use(node, modules)
            uses[module] = Use(
                before.read_by_layer and use.read_by_layer, before.reads_alone and use.reads_alone
            )
        elif isinstance(module, nn.RNN):
            read = any(_reads_sequence(user) for user in node.users)
            sequence_read[module] = sequence_read.get(module, False) or read
    return Readers(uses, {rnn for rnn, read in sequence_read.items() if not read})


def _reads_sequence(user: fx.Node) -> bool:
    """Whether a reader of an RNN's pair of outputs reads more than its last state."""
    unpacks = user.target is getitem and len(user.args) == 2
    return not unpacks or bool(user.args[1] != 1 and user.users)


def _use(relu: fx.Node, modules: dict[str, nn.Module]) -> Use:
    source = relu.args[0]
    assert isinstance(source, fx.Node)
    layer = _layer(source, modules)
    return Use(
        read_by_layer=any(_keeps_its_input(reader, modules) for reader in _readers(relu, modules)),
        reads_alone=layer is not None and len(source.users) == 1 and not layer._forward_hooks,
    )


def _readers(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """Who reads the values of a node, looking through reshapes."""
    for user in node.users:
        if (user.op == "call_module" and isinstance(modules[str(user.target)], RESHAPES)) or (
            user.op in ("call_function", "call_method") and user.target in _RESHAPE_CALLS
        ):
            yield from _readers(user, modules)
        else:
            yield user


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The layer that sketches, or will, whose call a node is."""
    if node.op != "call_module":
        return None
    module = modules[str(node.target)]
    kind = LAYERS.get(type(module), type(module))
    return module if issubclass(kind, Sketching) else None


def _keeps_its_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    layer = _layer(node, modules)
    return layer is not None and any(
        p.requires_grad for n, p in layer.named_parameters() if "weight" in n
    )
