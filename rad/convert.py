"""A torch.nn model to the same model with RAD layers.

Two passes: first, who reads the output of which ReLU; then each layer is replaced,
and what a ReLU keeps is decided. Nothing else of the model changes.
"""

from __future__ import annotations

import copy

from torch import nn

from rad.nn import LAYERS, RNN, ReLU, Sketching
from rad.readers import read_graph
from rad.sketches import Identity, Sketch


def convert(model: nn.Module, sketch: Sketch, seed: int = 0) -> nn.Module:
    """A copy of `model` whose weight gradients are estimated from sketches of the activations.

    Every linear, convolution and recurrent layer keeps `sketch` of its input, with draws that
    depend on `seed`, the layer's place and the number of the call; every
    `torch.nn.ReLU` keeps one bit per unit, or nothing where the layer after it keeps
    its output exactly; pooling and dropout keep what their backward pass needs.
    Parameters start equal, and the names in `state_dict` are the original's. What has
    no RAD layer stays as it is: see `rad.report`. A converted model may be converted
    again. Raises TypeError if `sketch` is no `rad.sketches.Sketch`.
    """
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a rad.sketches.Sketch, got {type(sketch).__name__}")
    model = copy.deepcopy(model)
    readers = read_graph(model)
    kinds = LAYERS | {kind: kind for kind in LAYERS.values()}
    place = 0
    for module in model.modules():
        if type(module) not in kinds:
            continue
        module.__class__ = kinds[type(module)]  # in place, so that every reference to it follows
        if isinstance(module, RNN):
            module.sequence_read = module not in readers.unread_sequences
        if isinstance(module, ReLU):
            told = module in readers.relus_kept_by_a_layer and isinstance(sketch, Identity)
            module.mask = "output" if told else "packed"
        if isinstance(module, Sketching):
            module.set_sketch(sketch, seed, place)
            place += 1
    return model
