"""Who reads which tensor of a model: the first pass of a conversion."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from rad.conversion.copies import fakes_in
from rad.nn import LAYERS, RAD_LAYERS, Sketching
from rad.nn.kinds import kind_of
from rad.nn.recomputing import is_recomputed
from rad.nn.registry import Question, operator_of
from rad.sketches import Identity

RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
"""Modules that keep nothing and pass the same numbers on."""
_CALLS = ("call_function", "call_method")
_SIZES = {"size", "shape", "dim", "ndim", "numel", "len"}
_PRODUCTS = {"mul", "imul", "multiply"}
_QUOTIENTS = {"div", "truediv", "itruediv", "divide", "true_divide"}
_RESHAPE_CALLS = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}


class Tracer(fx.Tracer):
    """Calls forward passes without their hooks, which are made for tensors and see no proxies."""

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        return super().call_module(m, m.forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_one = kind_of(m) in RAD_LAYERS or is_recomputed(m)
        return is_one or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Readers:
    """Of the modules that ask (`rad.nn.registry.Question`): for each call the trainable layers that
    sketch and read its output; those of whose pair of outputs only the second is read."""

    sketching: dict[nn.Module, list[set[nn.Module]]]
    unread_sequences: set[nn.Module]

    def answer(self, question: Question, module: nn.Module) -> bool:
        """With the sketches that the readers, converted, have now; of modules that no trace has
        met, what is right everywhere: nobody keeps the output, and somebody reads the sequence."""
        if question == "sequence_read":
            return module not in self.unread_sequences
        calls = self.sketching.get(module, [])
        return bool(calls) and all(map(_keeps_exactly, calls))


def read_graph(model: nn.Module) -> Readers:
    """Who reads what, in training and in evaluation, as far as the model can be traced.

    Of a model that cannot be (control flow on values, attributes that cannot be copied), nothing
    is known: packed masks and whole sequences are right everywhere. A trace may miss a path, too:
    what is concluded here decides what is kept, never a value. The model itself is neither
    run nor changed.
    """
    model = unwrapped(model)
    layers: dict[nn.Module, list[set[nn.Module]]] = {}
    sequence_read: dict[nn.Module, bool] = {}
    try:
        probe = _probe(model)
        if kind_of(probe) in LAYERS or kind_of(probe) in RAD_LAYERS:
            return Readers({}, set())
        with torch.random.fork_rng():
            modes = {part.training for part in probe.modules()}
            nodes = _traced(Tracer(), probe) if len(modes) > 1 else []  # parts in their own modes
            nodes += [n for mode in (True, False) for n in _traced(Tracer(), probe.train(mode))]
    except Exception:  # whatever forward may raise on proxies
        return Readers({}, set())
    modules = dict(probe.named_modules(remove_duplicate=False))
    for node in nodes:
        module = modules[node.target] if node.op == "call_module" else None
        row = None if module is None else operator_of(module)
        if module is None or row is None:
            continue
        if row.asks == "output_kept":
            reading = (_trainable_layer(reader, modules) for reader in _readers(node, modules))
            layers.setdefault(module, []).append({layer for layer in reading if layer is not None})
        elif row.asks == "sequence_read":
            read = bool(module._forward_hooks) or any(map(_reads_sequence, node.users))
            sequence_read[module] = sequence_read.get(module, False) or read
    original = {module: model.get_submodule(name) for name, module in modules.items()}
    return Readers(
        {
            original[asking]: [{original[layer] for layer in call} for call in calls]
            for asking, calls in layers.items()
        },
        {original[asking] for asking, read in sequence_read.items() if not read},
    )


def _traced(tracer: fx.Tracer, probe: nn.Module) -> list[fx.Node]:
    """The nodes of the probe's graph. The tracer, in a circle with its proxies, lets go of it."""
    nodes = list(tracer.trace(probe).nodes)
    tracer.root = nn.Module()
    return nodes


class _CallTracer(Tracer):
    """Looks into no layer, nor into a user's subclass of one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(LAYERS)) or super().is_leaf_module(m, module_qualified_name)


def functional_calls(model: nn.Module) -> dict[tuple[str, str], int] | None:
    """How often each part of a model calls each function or method of torch by itself.

    By (the part's name, the function's), in the model's present mode; what layers call inside is
    not counted, nor are functions of numbers alone (`x.size(-1) ** 0.5`) and products and quotients
    of a tensor by a number, which keep no tensor. None where the model cannot be traced.
    """
    try:
        probe = _probe(unwrapped(model))
        if _CallTracer().is_leaf_module(probe, ""):
            return {}
        with torch.random.fork_rng():
            nodes = _traced(_CallTracer(), probe)
    except Exception:  # whatever forward may raise on proxies
        return None
    calls = [n for n in nodes if n.op in _CALLS and not (_is_number(n) or _is_scaling(n))]
    return dict(Counter((_part(n), _function_name(n)) for n in calls))


def _is_number(value: Any) -> bool:
    """Whether an argument of a traced call is a number, or sizes: known without a tensor."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float | complex)
    if value.op not in _CALLS:
        return False
    name, args = _function_name(value), value.args
    if name == "getattr":
        return args[1] in _SIZES
    if name in _SIZES:
        return True
    if name == "getitem":
        return _is_number(args[0])
    return bool(args) and all(map(_is_number, (*args, *value.kwargs.values())))


def _is_scaling(node: fx.Node) -> bool:
    """Whether a call multiplies a tensor by a number, or divides it by one."""
    name = _function_name(node).strip("_")
    operands = (*node.args, *node.kwargs.values())
    if name in _PRODUCTS:
        return any(map(_is_number, operands))
    return name in _QUOTIENTS and len(operands) > 1 and _is_number(operands[1])


def _part(node: fx.Node) -> str:
    """The name of the module whose forward makes a call."""
    stack = node.meta.get("nn_module_stack") or {"": None}
    return str(list(stack)[-1]).split("@")[0]


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a distributed wrapper holds, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _probe(model: nn.Module) -> nn.Module:
    """A copy to trace, of all but parameters and the tensors that hooks compute from them."""
    shared = fakes_in(model) | {id(p): p for p in model.parameters()}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                shared[id(value)] = value.detach()
    return copy.deepcopy(model, shared)


def _reads_sequence(user: fx.Node) -> bool:
    """Whether a reader of a pair of outputs, a sequence and a last state, reads the sequence."""
    unpacks = user.target is getitem and len(user.args) == 2
    return not unpacks or bool(user.args[1] != 1 and user.users)


def _readers(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """Who reads the values of a node, looking through reshapes."""
    for user in node.users:
        if (user.op == "call_module" and isinstance(modules[str(user.target)], RESHAPES)) or (
            user.op in _CALLS and user.target in _RESHAPE_CALLS
        ):
            yield from _readers(user, modules)
        else:
            yield user


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The layer that sketches, or will, whose call a node is."""
    if node.op != "call_module":
        return None
    module = modules[str(node.target)]
    kind = LAYERS.get(kind_of(module), kind_of(module))
    return module if issubclass(kind, Sketching) else None


def _trainable_layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """That layer, if its input is needed for a weight's gradient."""
    layer = _layer(node, modules)
    if layer is None:
        return None
    weights = (p for name, p in layer.named_parameters() if "weight" in name)
    return layer if any(weight.requires_grad for weight in weights) else None


def _keeps_exactly(layers: Iterable[nn.Module]) -> bool:
    """Whether one of the layers that read a tensor keeps it as it is."""
    return any(isinstance(layer.sketch, Identity) for layer in layers)
