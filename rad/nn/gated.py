"""`torch.nn.LSTM` and `torch.nn.GRU` over `rad.functional.lstm` and `rad.functional.gru`."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rad.backends.operators import uncompiled
from rad.draws.reference import KEY_BYTES
from rad.functional.arguments import product_dtype
from rad.functional.cells import Cell
from rad.functional.gated_kept import Plan, frugal
from rad.functional.gru import GRU_CELL, gru
from rad.functional.lstm import LSTM_CELL, lstm
from rad.nn.base import TORCHS, Exact, Sketching, keeps_now
from rad.nn.recurrent_stack import States, Unread, directions_of, run_layers, sizes_of
from rad.sketches import Identity, Sketch, fold_in
from rad.sketches.blockwise import Rounding


class _Gated(Sketching):
    """What `LSTM` and `GRU` share."""

    cell: ClassVar[Cell]

    sequence_read: bool = True
    """Whether somebody reads the output sequence; if not (`rad.convert` finds out), it is not made
    while the layer keeps less than torch, and using what stands for it raises RuntimeError."""

    def __init__(
        self, *arguments: Any, sketch: Sketch | None = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.set_sketch(sketch or Identity(), seed)

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        if self._projects:
            return TORCHS
        if isinstance(self.sketch, Rounding):
            return f"{self.sketch} of input, states and derivatives (PackedSequence: as torch)"
        return "input and states, from which gates are calculated again (PackedSequence: as torch)"

    def sketches_now(self) -> bool:
        """Whether a call would round: in training mode, with gradients, and with a rounding."""
        return super().sketches_now() and isinstance(self.sketch, Rounding) and not self._projects

    def kept_bytes(self, x: Tensor, output: Any, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if self._is_left_to_torch(x):
            return 0  # what torch keeps is beyond RAD's account
        assert isinstance(self, nn.RNNBase)
        dtype = output[1][0].dtype
        total, below = 0, False  # whether the layer below keeps what this one reads
        for layer in range(self.num_layers):
            for direction in range(directions_of(self)):
                plan = self._plan(x, layer, dtype)
                weights = self._weights(layer, direction)
                of_input, of_state = (weight.requires_grad for weight in weights[:2])
                total += plan.nbytes(of_input, of_state) + KEY_BYTES * plan.rounds
                if plan.keeps_input(of_input):
                    whole = plan.steps * plan.batch * plan.features * dtype.itemsize
                    if layer == 0 and not direction and x.dtype == dtype and Identity.owns(x):
                        whole = exact(x)
                    total += 0 if below else whole
            drops = bool(self.dropout and self.training and layer < self.num_layers - 1)
            if drops:  # torch's mask: numbers on the CPU, bytes elsewhere
                masked = plan.steps * plan.batch * self.hidden_size * directions_of(self)
                total += masked * (dtype.itemsize if x.is_cpu else 1)
            below = not (plan.rounds or drops or self.bidirectional)
        return total

    def _plan(self, x: Tensor, layer: int, dtype: Any) -> Plan:
        """That of one direction of a layer."""
        assert isinstance(self, nn.RNNBase)
        features = self.hidden_size * directions_of(self) if layer else self.input_size
        sizes = (*sizes_of(self, x), features, self.hidden_size)
        return frugal(Plan(self.cell, *sizes, dtype, self.sketch))

    def _weights(self, layer: int, direction: int) -> list[Tensor]:
        assert isinstance(self, nn.RNNBase)
        place = layer * directions_of(self) + direction
        return [getattr(self, name) for name in self._all_weights[place]]

    @property
    def _projects(self) -> bool:
        return bool(getattr(self, "proj_size", 0))

    def _is_left_to_torch(self, input: Tensor | PackedSequence) -> bool:
        return self._projects or isinstance(input, PackedSequence)

    def _keeps_less(self, input: Tensor | PackedSequence) -> bool:
        """Whether a call runs here: else it is torch's."""
        return keeps_now(self) and not self._is_left_to_torch(input)

    @uncompiled
    def _run(self, input: Tensor, states: States | None) -> tuple[Any, States]:
        """The output, or what stands for it, and the last states."""
        assert isinstance(self, nn.RNNBase)
        key = self.next_key() if isinstance(self.sketch, Rounding) else self.key

        def run(
            x: Tensor, before: States, weights: list[Tensor], place: int, wanted: bool
        ) -> tuple[Tensor | None, States]:
            plan = self._plan(input, place // directions_of(self), product_dtype(x))
            options: Any = {"sketch": plan.sketch, "key": fold_in(key, place)}
            function = lstm if self.cell.has_cells else gru
            output, *after = function(x, *before, *weights, **options, return_sequence=wanted)
            return output, tuple(after)

        count = 2 if self.cell.has_cells else 1
        output, last = run_layers(self, input, states, count, run, self.sequence_read)
        return Unread() if output is None else output, last


class LSTM(_Gated, nn.LSTM):
    """`torch.nn.LSTM` that keeps rounded factors, or states alone (`rad.functional.lstm`).

    With a `StochasticRounding` or `DitheredRounding` each layer and direction keeps that of its
    input, its states and of six derivatives a unit and step, unless the exact states and input take
    no more. With any other sketch these are kept, and all gradients are exact: sampled derivatives
    would multiply up along the steps. Layer l and direction d of D draw with the sub-key l * D + d
    of the call's key; a reverse direction counts its steps from the end. Dropout between the layers
    is torch's. With `proj_size`, and of a PackedSequence, the layer is torch's, and keeps what that
    keeps.
    Arguments and shapes: as in torch, unbatched input included.
    """

    cell = LSTM_CELL

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        if not self._keeps_less(input):
            return super().forward(input, hx)  # type: ignore[has-type]
        return self._run(input, hx)


class GRU(_Gated, nn.GRU):
    """`torch.nn.GRU` that keeps rounded factors, or states alone (`rad.functional.gru`).

    As `LSTM`, with five derivatives a unit and step.
    """

    cell = GRU_CELL

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        if not self._keeps_less(input):
            return super().forward(input, hx)  # type: ignore[has-type]
        output, (h_n,) = self._run(input, None if hx is None else (hx,))
        return output, h_n
