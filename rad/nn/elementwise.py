"""Smooth activation functions that keep their derivative, rounded without bias."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.functional.in_place import overwrite
from rad.nn.base import Sketching
from rad.sketches import Identity, Sketch
from rad.sketches.rounding import Rounding


class _Elementwise(Sketching):
    """A layer that keeps its rounded derivative where it is given a rounding sketch.

    With any other sketch it is torch's layer: sampled derivatives would multiply up
    along a path, with a variance that grows exponentially in depth (paper, section
    3.3), where rounding adds little at each layer. Any shape.
    """

    def __init__(
        self, *arguments: object, sketch: Sketch | None = None, seed: int = 0, **options: object
    ) -> None:
        super().__init__(*arguments, **options)
        self.set_sketch(sketch or Identity(), seed)

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        rounded = isinstance(self.sketch, Rounding)
        return f"{self.sketch} of its derivative" if rounded else "what torch keeps"

    def forward(self, input: Tensor) -> Tensor:
        if not (self.sketches_now() and isinstance(self.sketch, Rounding)):
            exact: Tensor = super().forward(input)
            return exact
        self.place_draws(input.device)
        key = self.draw_key()
        output = functional.elementwise(input, self._function, sketch=self.sketch, key=key)
        return overwrite(input, output) if getattr(self, "inplace", False) else output

    def extra_repr(self) -> str:
        return super().extra_repr().removeprefix(", ")

    def _function(self, x: Tensor) -> Tensor:
        """torch's forward pass on a copy where it would work in place."""
        exact: Tensor = super().forward(x.clone() if getattr(self, "inplace", False) else x)
        return exact


class GELU(_Elementwise, nn.GELU):
    """`torch.nn.GELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class SiLU(_Elementwise, nn.SiLU):
    """`torch.nn.SiLU` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class Mish(_Elementwise, nn.Mish):
    """`torch.nn.Mish` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class Tanh(_Elementwise, nn.Tanh):
    """`torch.nn.Tanh` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class Sigmoid(_Elementwise, nn.Sigmoid):
    """`torch.nn.Sigmoid` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class Softplus(_Elementwise, nn.Softplus):
    """`torch.nn.Softplus` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class ELU(_Elementwise, nn.ELU):
    """`torch.nn.ELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""


class LeakyReLU(_Elementwise, nn.LeakyReLU):
    """`torch.nn.LeakyReLU` that keeps its derivative: two values, which 1 bit tells apart."""
