"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads the output of which ReLU; then each layer is replaced,
and what a ReLU keeps is decided. Nothing else of the model changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from torch import nn

from rad.errors import UsageError
from rad.example import check_model
from rad.nn import LAYERS, RNN, ReLU, Sketching
from rad.readers import read_graph
from rad.sketches import Identity, Sketch


def convert(model: nn.Module, sketch: Sketch | Mapping[str, Sketch], seed: int = 0) -> nn.Module:
    """A copy of `model` whose weight gradients are estimated from sketches of the activations.

    Every linear, convolution and recurrent layer keeps `sketch` of its input, with draws that
    depend on `seed`, the layer's place and the number of the call; every
    `torch.nn.ReLU` keeps one bit per unit, or nothing where the layer after it keeps
    its output exactly; pooling and dropout keep what their backward pass needs.
    A mapping gives each layer a sketch by the module's dotted name; layers that it does not
    name keep their input exactly. Parameters start equal, and the names in `state_dict` are the
    original's. What has no RAD layer stays as it is: see `rad.report`. A converted model may be
    converted again.
    Raises TypeError if a sketch is no `rad.sketches.Sketch`, UsageError for a name in the mapping
    that is no layer which sketches, for a class in place of a model, and for lazy layers that
    have not seen an input.
    """
    check_model(model)
    conversion = Conversion(copy.deepcopy(model))
    conversion.assign(sketch, seed)
    return conversion.model


class Conversion:
    """A model whose layers were replaced in place, and to which sketches can be assigned again."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._readers = read_graph(model)
        kinds = LAYERS | {kind: kind for kind in LAYERS.values()}
        layers = {name: m for name, m in model.named_modules() if type(m) in kinds}
        for module in layers.values():
            module.__class__ = kinds[type(module)]  # in place: every reference to it follows
        self._layers = list(layers.values())
        self.sketching = {n: m for n, m in layers.items() if isinstance(m, Sketching)}

    def assign(self, sketch: Sketch | Mapping[str, Sketch], seed: int = 0) -> None:
        """Decide what every layer keeps, and start its draws; as in `convert`."""
        for each in sketch.values() if isinstance(sketch, Mapping) else (sketch,):
            if not isinstance(each, Sketch):
                raise TypeError(f"sketch must be a rad.sketches.Sketch, got {type(each).__name__}")
        names = ", ".join(self.sketching)
        wanted = sketch if isinstance(sketch, Mapping) else dict.fromkeys(self.sketching, sketch)
        for name in wanted:
            if name not in self.sketching:
                raise UsageError(f"there is no layer {name!r} to sketch: choose among {names}")
        for place, (name, layer) in enumerate(self.sketching.items()):
            layer.set_sketch(wanted.get(name, Identity()), seed, place)
        for module in self._layers:
            if isinstance(module, RNN):
                module.sequence_read = module not in self._readers.unread_sequences
            if isinstance(module, ReLU):
                calls = self._readers.relu_layers.get(module, [])
                told = bool(calls) and all(map(_keeps_exactly, calls))
                module.mask = "output" if told else "packed"


def _keeps_exactly(layers: Iterable[nn.Module]) -> bool:
    """Whether one of the layers that read a tensor keeps it as it is."""
    return any(isinstance(layer.sketch, Identity) for layer in layers)
