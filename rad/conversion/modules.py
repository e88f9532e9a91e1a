"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads whose output; then each layer is replaced, and what it keeps is
decided where that follows from its readers. Nothing else of the model changes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from rad.conversion.copies import copied
from rad.conversion.example import check_model
from rad.conversion.readers import read_graph
from rad.errors import UsageError
from rad.functional.dithered import check_quadratic
from rad.nn import LAYERS, NORMS, Linear, Sequential, Sketching
from rad.nn.kinds import become, kind_of
from rad.nn.registry import OPERATORS, operator_of
from rad.nn.shared import Shared
from rad.sketches import Identity, Sketch

KINDS: dict[type[nn.Module], type[nn.Module]] = LAYERS | {kind: kind for kind in LAYERS.values()}
"""What each layer, of torch or of RAD, becomes."""

NORM_KINDS = NORMS | {kind: kind for kind in NORMS.values()}
"""The same of norms."""


class Planned(Protocol):
    """What names the sketches of a model, such as a `rad.Plan`."""

    @property
    def sketch(self) -> Sketch | Mapping[str, Sketch]: ...


@torch.inference_mode(False)
def convert(
    model: nn.Module,
    sketch: Sketch | Mapping[str, Sketch] | Planned,
    seed: int = 0,
    *,
    norms: Sketch | None = None,
    inplace: bool = False,
) -> nn.Module:
    """The model, with weight gradients that are estimated from sketches of the activations.

    In a training script: `model = rad.convert(model, sketch, inplace=True)`. The same object comes
    back, with the same parameters, so that an optimizer, a compiled or distributed wrapper or a
    hook made before stays right; what cannot be copied (old-style weight or spectral norm,
    sharded parameters, a lock) can be converted so. By default a converted *copy* comes back and
    `model` stays as it is: an optimizer made for `model` trains nothing of the copy, of which a
    warning is given.

    Every linear layer, convolution (a transposed one, too) and `torch.nn.RNN` keeps `sketch` of its
    input (an RNN: of its states, too, or with tanh the states themselves), with draws that depend
    on `seed` (any integer, modulo 2**64), the layer's place and the number of the call, and on the
    rank among several processes of torch.distributed; every `torch.nn.ReLU` keeps one bit per unit,
    or nothing where the layer after it keeps its output exactly; other activation functions keep
    their derivative where `sketch` is a `StochasticRounding` or `DitheredRounding`, and else what
    torch keeps; pooling, dropout and embeddings keep what their backward pass needs.
    A `torch.nn.Sequential` runs its linear layers and ReLUs together where nobody looks between
    them (`rad.nn.Sequential`).
    Normalisations stay as they are, unless `norms`, a `DitheredRounding`, is given: layer, RMS,
    group and batch norms then keep that of their normalised input. The gradients by their inputs
    become random by it, still unbiased, and so does all before them (`rad.nn.normalization`).
    A mapping gives each layer a sketch by the module's dotted name, any of them if it has
    several; layers that it does not name keep their input exactly. A plan of `rad.fit` stands for
    the sketches that it chose, for batches of its `batch_size`. Parameters start equal, and
    the names in `state_dict` are the original's; hooks and parametrizations stay. What has no RAD
    layer stays as it is: see `rad.report`. A converted model may be converted again, in place too.

    Raises TypeError if a sketch is no `rad.sketches.Sketch`, UsageError for norms with a sketch
    that would bias, for a name in the mapping that is no layer which sketches, for two sketches of
    one layer under two names, for a model that cannot be copied, for a class in place of a model,
    for lazy layers that have not seen an input, and for a layer with an attribute whose name its
    RAD layer needs.
    Nothing is converted then.
    """
    check_model(model)
    sketches: Any = sketch if isinstance(sketch, Mapping) else getattr(sketch, "sketch", sketch)
    _sketches_by_layer(model, sketches)
    if norms is not None:
        _check_sketch(norms)
        check_quadratic(norms)
        _check_names_are_free(_norms(model))
    seed = operator.index(seed)
    conversion = Conversion(model if inplace else copied(model))
    conversion.assign(sketches, seed)
    if norms is not None:
        conversion.replace_norms(norms, seed)
    return conversion.model


class Conversion:
    """A model whose layers were replaced in place, and to which sketches can be assigned again."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._readers = read_graph(model)
        layers = _layers(model)
        _check_names_are_free(layers)
        for module in layers.values():
            become(module, KINDS[kind_of(module)])
        for module in filter(_runs_layers, model.modules()):
            become(module, Sequential)
        self._layers = list(layers.values())
        self.sketching = {n: m for n, m in layers.items() if isinstance(m, Sketching)}

    def assign(self, sketch: Sketch | Mapping[str, Sketch], seed: int = 0) -> None:
        """Decide what every layer keeps, and start its draws; as in `convert`."""
        wanted = _sketches_by_layer(self.model, sketch)
        shared = Shared()
        for place, (name, layer) in enumerate(self.sketching.items()):
            layer.set_sketch(wanted.get(name, Identity()), seed, place)
            layer.shared = shared
        for module in self._layers:
            row = operator_of(module)
            if row is not None and row.asks is not None:
                setattr(module, row.asks, self._readers.answer(row.asks, module))

    def replace_norms(self, sketch: Sketch, seed: int = 0) -> None:
        """Norms keep that sketch of their normalised input from now on.

        Their places are after those of all other layers, whose draws do not depend on the norms.
        """
        for place, module in enumerate(_norms(self.model).values(), len(self.sketching)):
            become(module, NORM_KINDS[kind_of(module)])
            assert isinstance(module, Sketching)
            module.set_sketch(sketch, seed, place)


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms that have a RAD layer or are one, by their first names."""
    modules = model.named_modules()
    return {n: m for n, m in modules if kind_of(m) in NORM_KINDS and "forward" not in vars(m)}


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have a RAD layer or are one, by their first names.

    One whose forward was replaced by a function may compute something else, and is left alone.
    """
    modules = model.named_modules()
    return {n: m for n, m in modules if kind_of(m) in KINDS and "forward" not in vars(m)}


def _runs_layers(module: nn.Module) -> bool:
    """Whether it only calls its layers in turn, linear layers among them."""
    linear = any(kind_of(child) is Linear for child in module.children())
    return linear and kind_of(module) is nn.Sequential and "forward" not in vars(module)


def _check_names_are_free(layers: Mapping[str, nn.Module]) -> None:
    """Raise UsageError where a torch layer has an attribute that a RAD layer needs for itself."""
    asked = {row.asks for row in OPERATORS if row.asks is not None}
    needed = ("key", "calls", "sketch", "seed", "place", "shared", "replica", "mask", *asked)
    for name, layer in layers.items():
        if kind_of(layer) not in LAYERS | NORMS:
            continue
        for attribute in needed:
            if hasattr(layer, attribute):
                raise UsageError(
                    f"layer {name!r} has an attribute {attribute!r}, a name that its RAD layer "
                    "needs: rename the attribute"
                )


def _check_sketch(sketch: object) -> None:
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a rad.sketches.Sketch, got {type(sketch).__name__}")


def _sketches_by_layer(
    model: nn.Module, sketch: Sketch | Mapping[str, Sketch]
) -> dict[str, Sketch]:
    """The sketch of each layer that is given one, by the layer's first name; as in `convert`."""
    for each in sketch.values() if isinstance(sketch, Mapping) else (sketch,):
        _check_sketch(each)
    layers = _layers(model)
    names = {m: n for n, m in layers.items() if issubclass(KINDS[kind_of(m)], Sketching)}
    if not isinstance(sketch, Mapping):
        return dict.fromkeys(names.values(), sketch)
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, Sketch] = {}
    for name, each in sketch.items():
        first = names.get(modules[name]) if name in modules else None
        if first is None:
            known = ", ".join(names.values())
            raise UsageError(f"there is no layer {name!r} to sketch: choose among {known}")
        if wanted.setdefault(first, each) != each:
            raise UsageError(
                f"{name!r} and {first!r} are one layer, and are given two sketches: give it one"
            )
    return wanted
