"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads the output of which ReLU; then each layer is replaced,
and what a ReLU keeps is decided. Nothing else of the model changes.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from rad.nn import LAYERS, RNN, Keyed, ReLU, Sketching
from rad.readers import Use, read_graph
from rad.sketches import Identity, Sketch

Layer = TypeVar("Layer", bound=nn.Module)


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
    readers = read_graph(model)
    device = next((p.device for p in model.parameters()), None)
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
                layer.set_key(seed, places, device)
            elif isinstance(layer, ReLU):
                use = readers.relus.get(module, Use())
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
