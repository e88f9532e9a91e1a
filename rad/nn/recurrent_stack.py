"""Layers and directions of torch's recurrent modules, over a function that runs one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.nn.serving import as_torch

States = tuple[Tensor, ...]
RunLayer = Callable[[Tensor, States, list[Tensor], int, bool], tuple[Tensor | None, States]]
"""(x (T, B, I), states before (B, H), weights, place, whether the sequence is wanted) -> the
sequence (T, B, H) and the last states."""


class Unread:
    """Stands for an output sequence that was not made."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            "this output sequence was found to be unread when the model was converted, and was "
            "not made: set sequence_read = True on the recurrent layer to have it"
        )


def directions_of(module: nn.RNNBase) -> int:
    """1 or 2."""
    return 2 if module.bidirectional else 1


def sizes_of(module: nn.RNNBase, x: Tensor) -> tuple[int, int]:
    """Steps and batch of an input, which may be unbatched."""
    if x.dim() == 2:
        return len(x), 1
    return (x.shape[1], x.shape[0]) if module.batch_first else (x.shape[0], x.shape[1])


def run_layers(
    module: nn.RNNBase,
    input: Tensor,
    states: States | None,
    count: int,
    run: RunLayer,
    return_sequence: bool,
) -> tuple[Tensor | None, States]:
    """What `module` computes, layer by layer and direction by direction.

    Layer l and direction d of D are the place l * D + d; a reverse direction sees its steps from
    the end. Dropout between the layers is torch's. `states` are `count` tensors of all places, or
    None for zeros. Shapes: as in torch. Raises torch's errors for others.
    """
    batched = input.dim() == 3
    if not batched:
        input = input.unsqueeze(int(not module.batch_first))
        states = None if states is None else tuple(state.unsqueeze(1) for state in states)
    directions = directions_of(module)
    if states is None:
        batch = input.shape[0 if module.batch_first else 1]
        zeros = input.new_zeros(module.num_layers * directions, batch, module.hidden_size)
        states = (zeros,) * count
    module.check_forward_args(input, states if count > 1 else states[0], None)  # type: ignore[arg-type]

    x = input.transpose(0, 1) if module.batch_first else input
    output: Tensor | None = None
    last: list[States] = []
    for layer in range(module.num_layers):
        top = layer == module.num_layers - 1
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = [getattr(module, name) for name in module._all_weights[place]]
            before = tuple(state[place] for state in states)
            seen = x.flip(0) if direction else x
            output, after = run(seen, before, weights, place, return_sequence or not top)
            last.append(after)
            if output is not None:
                outputs.append(output.flip(0) if direction else output)
        if len(outputs) == 2:
            output = torch.cat(outputs, 2)
        if output is not None and not top:
            x = _dropped(output, module.dropout, module.training)
    stacked = tuple(torch.stack(each) for each in zip(*last, strict=True))
    if not batched:
        output = output if output is None else output.squeeze(1)
        return output, tuple(state.squeeze(1) for state in stacked)
    if output is not None and module.batch_first:
        output = output.transpose(0, 1)
    return output, stacked


def _dropped(x: Tensor, p: float, training: bool) -> Tensor:
    """torch's dropout, with torch's mask, wherever the layer is called."""
    result: Tensor = as_torch(F.dropout, x, p, training) if p else x
    return result
