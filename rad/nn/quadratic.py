"""Layers whose backward pass multiplies what they keep by itself: one dithered copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rad.functional.dithered import check_quadratic
from rad.nn.base import Sketching
from rad.nn.serving import as_torch
from rad.sketches import Identity, Sketch


class Quadratic(Sketching):
    """Mixin of layers that keep a `DitheredRounding` of what their gradient by the input reads.

    That gradient is random, and unbiased. With `Identity`, in evaluation mode and without gradients
    it is torch's layer. Raises UsageError for other sketches, which would bias it.
    """

    on_path = True

    def __init__(
        self, *arguments: Any, sketch: Sketch | None = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.set_sketch(sketch or Identity(), seed)

    def set_sketch(self, sketch: Sketch, seed: int = 0, place: int = 0) -> None:
        """As of every layer that sketches; raises UsageError for a sketch that would bias."""
        check_quadratic(sketch)
        super().set_sketch(sketch, seed, place)

    def forward(self, input: Tensor) -> Tensor:
        if not self.sketches_now():
            exact: Tensor = as_torch(super().forward, input)
            return exact
        self.place_draws(input.device)
        return self._sketched(input, {"sketch": self.sketch, "key": self.next_key()})

    def _sketched(self, x: Tensor, how: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def sketches_now(self) -> bool:
        """Whether a call would sketch: `Sketching.sketches_now`, and the sketch is a rounding."""
        return super().sketches_now() and not isinstance(self.sketch, Identity)

    def extra_repr(self) -> str:
        return super().extra_repr().removeprefix(", ")
