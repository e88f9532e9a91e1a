"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads the output of which ReLU; then each layer is replaced,
and what a ReLU keeps is decided. Nothing else of the model changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import TypeVar

import torch
from torch import fx, nn

from rad.nn import LAYERS, RNN, Keyed, ReLU, Sketching
from rad.sketches import Identity, Sketch

Layer = TypeVar("Layer", bound=nn.Module)

_RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
_RESHAPE_CALLS = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}


def convert(model: nn.Module, sketch: Sketch, seed: int = 0) -> nn.Module:
    """A copy of `model` whose weight gradients are estimated from sketches of the activations.

    Every linear, convolution and recurrent layer keeps `sketch` of its input, with draws that
    depend on `seed`, the layer's place and the number of the call; every
    `torch.nn.ReLU` keeps one bit per unit, or nothing where the layer after it keeps
    its output exactly; pooling and dropout keep what their backward pass needs. A ReLU
    that alone reads the output of such a layer works in place. Parameters start equal,
    and the names in `state_dict` are the original's. What has no RAD layer stays as
    it is: see `rad.report`. A converted model may be converted again. Raises TypeError
    if `sketch` is no `rad.sketches.Sketch`.
    """
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a rad.sketches.Sketch, got {type(sketch).__name__}")
    model = copy.deepcopy(model)
    readers = _read_graph(model)
    kinds = LAYERS | {kind: kind for kind in LAYERS.values()}
    replaced: dict[nn.Module, nn.Module] = {}
    places = 0
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in replaced and type(module) in kinds:
            layer = _as(kinds[type(module)], module)
            if isinstance(layer, RNN):
                layer.sequence_read = module not in readers.unread_sequences
            if isinstance(layer, Sketching):
                layer.set_sketch(sketch, seed, places)
            elif isinstance(layer, Keyed):
                layer.set_key(seed, places)
            elif isinstance(layer, ReLU):
                use = readers.relus.get(module, _Use())
                told = use.read_by_layer and isinstance(sketch, Identity)
                layer.mask = "output" if told else "packed"
                layer.inplace |= use.reads_alone
            places += isinstance(layer, Keyed)
            replaced[module] = layer
        if module in replaced:
            model = _put(model, name, replaced[module])
    return model


def _as(kind: type[Layer], module: nn.Module) -> Layer:
    """`module` as an instance of `kind`, a subclass of its type: same parameters, hooks, mode."""
    layer = kind.__new__(kind)
    layer.__dict__.update(module.__dict__)
    return layer


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = type(m) in LAYERS.values()
        return known or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Use:
    """How a ReLU is used: whether a trainable layer that sketches reads its output, and
    whether it is the only reader of such a layer's output."""

    read_by_layer: bool = False
    reads_alone: bool = False


@dataclass(frozen=True)
class _Readers:
    """The ReLU modules and how all calls of each are used; the RNN modules of whose outputs
    only the last state is read."""

    relus: dict[nn.Module, _Use]
    unread_sequences: set[nn.Module]


def _read_graph(model: nn.Module) -> _Readers:
    """Who reads what, as far as the model can be traced.

    Of a model that cannot be (control flow on values), nothing is known: packed masks,
    nothing in place and whole sequences are right everywhere.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever forward may raise on proxies
        return _Readers({}, set())
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: dict[nn.Module, _Use] = {}
    sequence_read: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        if isinstance(module, nn.ReLU):
            before, use = uses.get(module, _Use(True, True)), _use(node, modules)
            uses[module] = _Use(
                before.read_by_layer and use.read_by_layer, before.reads_alone and use.reads_alone
            )
        elif isinstance(module, nn.RNN):
            read = any(_reads_sequence(user) for user in node.users)
            sequence_read[module] = sequence_read.get(module, False) or read
    return _Readers(uses, {rnn for rnn, read in sequence_read.items() if not read})


def _reads_sequence(user: fx.Node) -> bool:
    """Whether a reader of an RNN's pair of outputs reads more than its last state."""
    unpacks = user.target is getitem and len(user.args) == 2
    return not unpacks or (user.args[1] != 1 and bool(user.users))


def _use(relu: fx.Node, modules: dict[str, nn.Module]) -> _Use:
    source = relu.args[0]
    assert isinstance(source, fx.Node)
    layer = _layer(source, modules)
    return _Use(
        read_by_layer=any(_keeps_its_input(reader, modules) for reader in _readers(relu, modules)),
        reads_alone=layer is not None and len(source.users) == 1 and not layer._forward_hooks,
    )


def _readers(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """Who reads the values of a node, looking through reshapes."""
    for user in node.users:
        if (user.op == "call_module" and isinstance(modules[str(user.target)], _RESHAPES)) or (
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


@dataclass(frozen=True)
class Replacement:
    """One module of a converted model: its name, its type, and what it keeps."""

    name: str
    kind: str
    keeps: str


@dataclass(frozen=True)
class Report:
    """What `convert` replaced and what it left, module by module; prints as a table."""

    replaced: tuple[Replacement, ...]
    left: tuple[Replacement, ...]

    def __str__(self) -> str:
        rows = [("replaced", r) for r in self.replaced] + [("left", r) for r in self.left]
        cells = [(r.name or "(model)", r.kind, state, r.keeps) for state, r in rows]
        cells.insert(0, ("module", "type", "", "keeps for backward"))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join(
            "  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]])
            for row in cells
        )


def report(model: nn.Module) -> Report:
    """What was replaced in a converted model, what was not, and why."""
    replaced, left = [], []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if type(module) in LAYERS.values():
            replaced.append(Replacement(name, kind, str(module.keeps)))
        elif isinstance(module, _RESHAPES):
            left.append(Replacement(name, kind, "nothing: it only reshapes"))
        elif not any(module.children()) or any(module.parameters(recurse=False)):
            left.append(Replacement(name, kind, _why_left(module)))
    return Report(tuple(replaced), tuple(left))


def _why_left(module: nn.Module) -> str:
    if isinstance(module, tuple(LAYERS)):
        return "what torch keeps: a subclass of a torch layer may compute something else"
    return "what torch keeps: no RAD layer for this type"
