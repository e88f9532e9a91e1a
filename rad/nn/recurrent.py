"""`torch.nn.RNN` over `rad.functional.recurrent`: layers, directions, batch first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rad.backends.operators import uncompiled
from rad.draws.reference import KEY_BYTES
from rad.functional.linear_noise import LinearResponse
from rad.functional.noise_response import NoiseResponse
from rad.functional.recurrent import Nonlinearity, rnn
from rad.functional.recurrent_fused import can_fuse
from rad.nn.base import Exact, Sketching
from rad.nn.recurrent_stack import States, Unread, directions_of, run_layers, sizes_of
from rad.packing.bits import packed_bytes
from rad.sketches import Identity, Sketch, fold_in


class RNN(Sketching, nn.RNN):
    """`torch.nn.RNN` that keeps sketches of its states (`rad.functional.recurrent.rnn`).

    Layer l and direction d of D draw with the sub-key l * D + d of the call's key; a
    reverse direction counts its steps from the end. With `nonlinearity="tanh"` the
    states are kept exactly. Dropout between the layers is torch's.
    Shapes: as in torch, unbatched input included: (T, B, I), or (B, T, I) with
    `batch_first` -> output (T, B, D H), or (B, T, D H), and h_n (D layers, B, H).
    A PackedSequence raises TypeError where the layer sketches.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sketch: Sketch | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.set_sketch(sketch or Identity(), seed)

    sequence_read: bool = True
    """Whether somebody reads the output sequence; if not (`rad.convert` finds out), it is
    not made while the layer sketches, and using what stands for it raises RuntimeError."""

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        if self.nonlinearity == "tanh":
            return (
                f"every state (tanh's derivative is not linear in it), {self.sketch} of the input"
            )
        return f"{self.sketch} of every state"

    def kept_bytes(self, x: Tensor, output: Any, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        steps, batch = sizes_of(self, x)
        dtype, directions = output[1].dtype, directions_of(self)
        total = 0
        for place in range(self.num_layers):
            features = self.hidden_size * directions if place else self.input_size
            chained = place and directions == 1 and not (self.dropout and self.training)
            if isinstance(self.sketch, Identity) and chained:
                inputs = 0  # the states of the layer below
            elif isinstance(self.sketch, Identity) or features == 1:
                inputs = steps * batch * features * dtype.itemsize
            else:
                inputs = steps * self.sketch.nbytes((batch, features), dtype)
            like = x.new_empty(0, 0, features)
            fused = can_fuse(like, self.hidden_size, self.nonlinearity, self.sketch, dtype)
            states = self._states_bytes(steps, batch, dtype, fused)
            total += directions * (KEY_BYTES + inputs + states)
        return total

    def _states_bytes(self, steps: int, batch: int, dtype: torch.dtype, fused: bool) -> int:
        units = batch * self.hidden_size
        if isinstance(self.sketch, Identity) or self.nonlinearity == "tanh":
            return (steps + 1) * units * dtype.itemsize
        sketches = steps * self.sketch.nbytes((batch, self.hidden_size), dtype)
        if fused:  # bits are packed over the batch
            return sketches + steps * packed_bytes(batch) * self.hidden_size
        return sketches + packed_bytes(steps * units)

    def noise_response(self, x: Tensor, grad_output: Tensor) -> NoiseResponse:
        """That of one step and weight, x being the state before it, or its input.

        Steps draw independently, so that their variances add up. `grad_output` is the gradient
        by what enters the activation.
        """
        return LinearResponse(x, grad_output)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence | Unread, Tensor]:
        if not self.sketches_now():
            exact: tuple[Tensor | PackedSequence, Tensor] = super().forward(input, hx)  # type: ignore[has-type]
            return exact
        output, h_n = self._run(input, hx, self.sketch, self.draw_key(), self.sequence_read)
        return Unread() if output is None else output, h_n

    def last_state(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h_n alone: the output of the last layer never stands in memory as a sequence.

        Unless it is kept, with tanh or `Identity`. In `eval()` the states are kept
        exactly, as by torch; under `no_grad` nothing is kept.
        """
        if self.sketches_now():
            return self._run(input, hx, self.sketch, self.draw_key(), return_sequence=False)[1]
        return self._run(input, hx, Identity(), self.key, return_sequence=False)[1]

    @uncompiled
    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None,
        sketch: Sketch,
        key: Tensor,
        return_sequence: bool,
    ) -> tuple[Tensor | None, Tensor]:
        if isinstance(input, PackedSequence):
            raise TypeError(
                "a PackedSequence cannot be sketched: give sequences of one length as a tensor "
                "(batches sorted by length), or keep torch.nn.RNN for this layer"
            )

        def run(
            x: Tensor, before: States, weights: list[Tensor], place: int, wanted: bool
        ) -> tuple[Tensor | None, States]:
            output, h_n = rnn(
                x,
                before[0],
                *weights,
                nonlinearity=self.nonlinearity,
                sketch=sketch,
                key=fold_in(key, place),
                return_sequence=wanted,
            )
            return output, (h_n,)

        states = None if hx is None else (hx,)
        output, (h_n,) = run_layers(self, input, states, 1, run, return_sequence)
        return output, h_n

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"
