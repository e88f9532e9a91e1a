"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads whose output; then each layer is replaced, and what it keeps is
decided where that follows from its readers. Nothing else of the model changes.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from rad.conversion.copies import copied
from rad.conversion.example import check_model
from rad.conversion.functions import NAMES, served_modules, with_forward
from rad.conversion.readers import read_graph, unwrapped
from rad.conversion.subclasses import can_become_rad, taken_name
from rad.errors import UsageError
from rad.functional.dithered import check_quadratic
from rad.nn import LAYERS, NORMS, Linear, Sequential, Sketching
from rad.nn.calls import Calls
from rad.nn.kinds import become, kind_of
from rad.nn.recomputing import is_recomputed, recompute, stop_recomputing, within_recomputed
from rad.nn.registry import operator_of
from rad.nn.serving import calls_of, is_served, serve, stop_serving
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

    @property
    def path(self) -> Sketch | None: ...

    @property
    def recomputed(self) -> Collection[str]: ...


@torch.inference_mode(False)
def convert(
    model: nn.Module,
    sketch: Sketch | Mapping[str, Sketch] | Planned,
    seed: int = 0,
    *,
    path: Sketch | None = None,
    recomputed: Collection[str] = (),
    functions: bool = True,
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
    torch keeps; `torch.nn.LSTM` and `torch.nn.GRU` keep derivatives, too, where it is one of these,
    and else their input and states, exactly; pooling, dropout and embeddings keep what their
    backward pass needs.
    A `torch.nn.Sequential` runs its linear layers and ReLUs together where nobody looks between
    them (`rad.nn.Sequential`).
    What lies on the gradient's path stays as it is, unless `path`, a `DitheredRounding`, is given:
    normalisations, and the derivatives of activation functions whatever `sketch` is, then keep
    that. The gradients by their inputs become random by it, still unbiased, and so do all before
    them (`rad.nn.normalization`).
    Functions of torch that forward passes call by themselves (`F.relu(x)`, `x @ y`) are served like
    layers (`rad.nn.serving`), with draws by the module, its pass and the call: products by `path`
    alone, but for a call with the weight and bias of a layer right below, which is that layer's.
    Not with `functions=False`. A part of a forward pass that non-reentrant checkpointing runs
    again, and that is no module, needs `functions=False`.
    The modules named in `recomputed`, with all inside them, are torch's, and keep the tensors that
    they are given alone: their forward passes run once more in the backward pass
    (`rad.nn.recomputing`).
    A mapping gives each layer a sketch by the module's dotted name, any of them if it has
    several; layers that it does not name, and functional calls, keep inputs exactly. A plan of
    `rad.fit` stands for the sketches, the path and the recomputed modules that it chose, for
    batches of its `batch_size`.
    Parameters start equal, and the names in `state_dict` are the original's; hooks and
    parametrizations stay. What has no RAD layer stays as it is: see `rad.report`. A converted model
    may be converted again, in place too.

    Raises TypeError if a sketch is no `rad.sketches.Sketch`, UsageError for a path with a sketch
    that would bias, for a name in the mapping that is no layer which sketches, for two sketches of
    one layer under two names, for a model that cannot be copied, for a class in place of a model,
    for lazy layers that have not seen an input, for a layer or a module with an attribute whose
    name its RAD layer needs, or its functional calls, and for a name in `recomputed` that is no
    module, is the model itself, or lies in another recomputed one. Nothing is converted then.
    """
    check_model(model)
    sketches: Any = sketch
    if not isinstance(sketch, Mapping | Sketch):
        sketches = getattr(sketch, "sketch", sketch)
        path = getattr(sketch, "path", None) if path is None else path
        recomputed = recomputed or getattr(sketch, "recomputed", ())
    _check_recomputed(model, recomputed)
    _sketches_by_layer(model, sketches, _parts(model, recomputed))
    if path is not None:
        _check_sketch(path)
        check_quadratic(path)
        _check_names_are_free(_norms(model, _parts(model, recomputed)))
    seed = operator.index(seed)
    copy = model if inplace else copied(model)
    conversion = Conversion(copy, functions=functions, recomputed=recomputed)
    conversion.assign(sketches, seed, path)
    return conversion.model


class Conversion:
    """A model whose layers were replaced in place, and to which sketches can be assigned again."""

    def __init__(
        self, model: nn.Module, *, functions: bool = True, recomputed: Collection[str] = ()
    ) -> None:
        self.model = model
        parts = _parts(model, recomputed)
        _check_names_are_free(_layers(model, parts))
        if functions:
            _check_names_are_free_for_calls(with_forward(unwrapped(model), parts))
        for module in filter(is_recomputed, model.modules()):
            stop_recomputing(module)
        for name in recomputed:
            _recompute(model.get_submodule(name))
        self._readers = read_graph(model)
        self._served = served_modules(model) if functions else {}
        for module in filter(is_served, model.modules()):
            if not functions:
                stop_serving(module)
        within = within_recomputed(model)
        layers = _layers(model, within)
        for module in layers.values():
            become(module, KINDS[kind_of(module)])
        for _, module in _outside(model, within):
            if _runs_layers(module):
                become(module, Sequential)
        self._layers = list(layers.values())
        self._paths = dict(_paths(model))
        self.sketching = {n: m for n, m in layers.items() if isinstance(m, Sketching)}

    def assign(
        self, sketch: Sketch | Mapping[str, Sketch], seed: int = 0, path: Sketch | None = None
    ) -> None:
        """Decide what every layer and functional call keeps, and start its draws; as in `convert`.

        Without a path, norms and functional calls keep what they kept before the conversion.
        Their places are after those of all other layers, whose draws do not depend on them.
        """
        wanted = _sketches_by_layer(self.model, sketch, within_recomputed(self.model))
        shared = Shared()
        for place, (name, layer) in enumerate(self.sketching.items()):
            kept: Sketch = wanted.get(name, Identity())
            is_named = isinstance(sketch, Mapping) and name in wanted
            if path is not None and layer.on_path and not is_named:
                kept = path
            layer.set_sketch(kept, seed, place)
            layer.shared = shared
        for module in self._layers:
            row = operator_of(module)
            if row is not None and row.asks is not None:
                setattr(module, row.asks, self._readers.answer(row.asks, module))
        norms = _norms(self.model, within_recomputed(self.model))
        for place, module in enumerate(norms.values(), len(self.sketching)):
            self._set_norm(module, path, seed, place)
        rest = sketch if isinstance(sketch, Sketch) else Identity()
        for place, module in enumerate(self._served.values(), len(self.sketching) + len(norms)):
            of_calls = self._paths.get(module) if path is None else path
            serve(module, Calls(rest, of_calls, seed, place))

    def _set_norm(self, module: nn.Module, path: Sketch | None, seed: int, place: int) -> None:
        """A norm keeps that sketch of its normalised input from now on."""
        if path is not None:
            become(module, NORM_KINDS[kind_of(module)])
        if isinstance(module, Sketching):
            kept = self._paths.get(module, Identity()) if path is None else path
            module.set_sketch(kept, seed, place)


def _recompute(module: nn.Module) -> None:
    """Recompute a module, with exact layers inside where they were converted before."""
    for part in module.modules():
        if is_served(part):
            stop_serving(part)
        if isinstance(part, Sketching):
            part.set_sketch(Identity())
    recompute(module)


def _parts(model: nn.Module, names: Collection[str]) -> set[nn.Module]:
    """The modules of those names, and all modules inside them."""
    return {part for name in names for part in model.get_submodule(name).modules()}


def _outside(model: nn.Module, within: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are not among those that are recomputed, by their first names."""
    return ((name, module) for name, module in model.named_modules() if module not in within)


def _paths(model: nn.Module) -> Iterator[tuple[nn.Module, Sketch]]:
    """The norms and the functional calls that keep a sketch already, and which."""
    for module in model.modules():
        if is_served(module):
            path = calls_of(module).path
            if path is not None:
                yield module, path
        elif kind_of(module) in NORMS.values():
            assert isinstance(module, Sketching)
            yield module, module.sketch


def _norms(model: nn.Module, within: Collection[nn.Module]) -> dict[str, nn.Module]:
    """The norms that have a RAD layer or are one, but for those within, by their first names."""
    modules = _outside(model, within)
    return {n: m for n, m in modules if kind_of(m) in NORM_KINDS and can_become_rad(m)}


def _layers(model: nn.Module, within: Collection[nn.Module]) -> dict[str, nn.Module]:
    """The layers that have a RAD layer or are one, but for those within, by their first names.

    One whose forward was replaced by a function may compute something else, and is left alone.
    """
    modules = _outside(model, within)
    return {n: m for n, m in modules if kind_of(m) in KINDS and can_become_rad(m)}


def _runs_layers(module: nn.Module) -> bool:
    """Whether it only calls its layers in turn, linear layers among them."""
    linear = any(kind_of(child) is Linear for child in module.children())
    return linear and kind_of(module) is nn.Sequential and "forward" not in vars(module)


def _check_names_are_free(layers: Mapping[str, nn.Module]) -> None:
    """Raise UsageError where a torch layer has an attribute that a RAD layer needs for itself."""
    for name, layer in layers.items():
        if kind_of(layer) in LAYERS | NORMS and (attribute := taken_name(layer)) is not None:
            raise UsageError(
                f"layer {name!r} has an attribute {attribute!r}, a name that its RAD layer "
                "needs: rename the attribute"
            )


def _check_names_are_free_for_calls(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise UsageError where a module has an attribute that its functional calls need."""
    for name, module in modules:
        taken = [each for each in NAMES if hasattr(module, each)]
        if taken and not is_served(module):
            raise UsageError(
                f"module {name!r} has an attribute {taken[0]!r}, a name that its functional calls "
                "need: rename the attribute"
            )


def _check_recomputed(model: nn.Module, names: Collection[str]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(names, str):
        raise UsageError(
            f"recomputed is the text {names!r}: give names of modules, such as [{names!r}]"
        )
    for name in names:
        if not name or name not in modules:
            raise UsageError(f"there is no module {name!r} to recompute: give names of submodules")
        if "forward" in vars(modules[name]):
            raise UsageError(
                f"{name!r} cannot be recomputed, since its forward was replaced by a function: "
                "give it a class with that forward"
            )
    parts = Counter(part for name in names for part in set(modules[name].modules()))
    if any(count > 1 for count in parts.values()):
        raise UsageError(
            "a module to be recomputed lies in another one, or has another name among "
            f"{', '.join(names)}: name the outer one alone, once"
        )


def _check_sketch(sketch: object) -> None:
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a rad.sketches.Sketch, got {type(sketch).__name__}")


def _sketches_by_layer(
    model: nn.Module, sketch: Sketch | Mapping[str, Sketch], within: Collection[nn.Module]
) -> dict[str, Sketch]:
    """The sketch of each layer that is given one, by the layer's first name; as in `convert`.

    Layers `within` modules that are recomputed are given none.
    """
    for each in sketch.values() if isinstance(sketch, Mapping) else (sketch,):
        _check_sketch(each)
    layers = _layers(model, within)
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
