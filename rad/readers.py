"""Who reads which tensor of a model: the first pass of a conversion."""

from __future__ import annotations

import copy
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
class Readers:
    """The ReLU modules whose output, at every call, a trainable layer that sketches reads;
    the RNN modules of whose outputs only the last state is read."""

    relus_kept_by_a_layer: set[nn.Module]
    unread_sequences: set[nn.Module]


def read_graph(model: nn.Module) -> Readers:
    """Who reads what, in training and in evaluation, as far as the model can be traced.

    Of a model that cannot be (control flow on values), nothing is known: packed masks and
    whole sequences are right everywhere. A trace may miss a path, too: what is concluded
    here decides what is kept, never a value. The model itself is not run.
    """
    probe = copy.deepcopy(model)
    modules = dict(probe.named_modules(remove_duplicate=False))
    kept: dict[nn.Module, bool] = {}
    sequence_read: dict[nn.Module, bool] = {}
    try:
        if type(probe) in LAYERS or type(probe) in LAYERS.values():
            return Readers(set(), set())
        nodes = [n for mode in (True, False) for n in Tracer().trace(probe.train(mode)).nodes]
    except Exception:  # whatever forward may raise on proxies
        return Readers(set(), set())
    for node in nodes:
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.ReLU):
            by_layer = any(_keeps_its_input(reader, modules) for reader in _readers(node, modules))
            kept[module] = kept.get(module, True) and by_layer
        elif isinstance(module, nn.RNN):
            read = bool(module._forward_hooks) or any(map(_reads_sequence, node.users))
            sequence_read[module] = sequence_read.get(module, False) or read
    original = {module: model.get_submodule(name) for name, module in modules.items()}
    return Readers(
        {original[relu] for relu, by_layer in kept.items() if by_layer},
        {original[rnn] for rnn, read in sequence_read.items() if not read},
    )


def _reads_sequence(user: fx.Node) -> bool:
    """Whether a reader of an RNN's pair of outputs reads more than its last state."""
    unpacks = user.target is getitem and len(user.args) == 2
    return not unpacks or bool(user.args[1] != 1 and user.users)


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
