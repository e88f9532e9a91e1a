"""Smooth activation functions that keep their derivative, rounded without bias."""

from __future__ import annotations

from torch import Tensor, nn

from rad import functional
from rad.draws.reference import KEY_BYTES
from rad.functional.activation import Activation
from rad.functional.elementwise import derivative_rows
from rad.functional.in_place import overwrite
from rad.nn.base import TORCHS, Exact, Sketching
from rad.nn.serving import as_torch
from rad.sketches import Identity, Sketch, StochasticRounding
from rad.sketches.blockwise import Rounding


class _Elementwise(Sketching):
    """A layer that keeps its rounded derivative, with `StochasticRounding` or `DitheredRounding`.

    With any other sketch it is torch's layer: sampled derivatives would multiply up
    along a path, with a variance that grows exponentially in depth (paper, section
    3.3), where rounding adds little at each layer. Any shape.
    """

    on_path = True
    function: str
    """Its name in `torch.nn.functional`."""
    options: tuple[str, ...] = ()
    """Attributes that are its arguments, in order."""
    is_two_valued: bool = False
    """Whether its derivative has two values: with any rounding, one bit then keeps it exactly."""

    of_derivative: Sketch
    """The sketch of the derivative."""

    def __init__(
        self, *arguments: object, sketch: Sketch | None = None, seed: int = 0, **options: object
    ) -> None:
        super().__init__(*arguments, **options)
        self.set_sketch(sketch or Identity(), seed)

    def set_sketch(self, sketch: Sketch, seed: int = 0, place: int = 0) -> None:
        """As of every layer that sketches."""
        super().set_sketch(sketch, seed, place)
        if self.is_two_valued and isinstance(sketch, Rounding):
            sketch = StochasticRounding(1, sketch.block)
        self.of_derivative = sketch

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        rounded = isinstance(self.sketch, Rounding)
        return f"{self.of_derivative} of its derivative" if rounded else TORCHS

    def forward(self, input: Tensor) -> Tensor:
        if not self.sketches_now():
            exact: Tensor = as_torch(super().forward, input)
            return exact
        self.place_draws(input.device)
        key = self.draw_key()
        output = functional.elementwise(input, self.activation, sketch=self.of_derivative, key=key)
        return overwrite(input, output) if getattr(self, "inplace", False) else output

    def sketches_now(self) -> bool:
        """Whether a call would sketch: `Sketching.sketches_now`, and the sketch is a rounding."""
        return super().sketches_now() and isinstance(self.sketch, Rounding)

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if not isinstance(self.sketch, Rounding):
            return 0  # it is torch's layer then, and what that keeps is beyond RAD's account
        return KEY_BYTES + self.of_derivative.nbytes(tuple(derivative_rows(x).shape), output.dtype)

    def extra_repr(self) -> str:
        return super().extra_repr().removeprefix(", ")

    @property
    def activation(self) -> Activation:
        """What the layer computes."""
        return Activation(self.function, tuple([getattr(self, name) for name in self.options]))


class GELU(_Elementwise, nn.GELU):
    """`torch.nn.GELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function, options = "gelu", ("approximate",)


class SiLU(_Elementwise, nn.SiLU):
    """`torch.nn.SiLU` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "silu"


class Mish(_Elementwise, nn.Mish):
    """`torch.nn.Mish` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "mish"


class Tanh(_Elementwise, nn.Tanh):
    """`torch.nn.Tanh` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "tanh"


class Sigmoid(_Elementwise, nn.Sigmoid):
    """`torch.nn.Sigmoid` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "sigmoid"


class Softplus(_Elementwise, nn.Softplus):
    """`torch.nn.Softplus` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function, options = "softplus", ("beta", "threshold")


class ELU(_Elementwise, nn.ELU):
    """`torch.nn.ELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function, options = "elu", ("alpha",)


class SELU(_Elementwise, nn.SELU):
    """`torch.nn.SELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "selu"


class CELU(_Elementwise, nn.CELU):
    """`torch.nn.CELU` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function, options = "celu", ("alpha",)


class Hardswish(_Elementwise, nn.Hardswish):
    """`torch.nn.Hardswish` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "hardswish"


class LogSigmoid(_Elementwise, nn.LogSigmoid):
    """`torch.nn.LogSigmoid` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "logsigmoid"


class Softsign(_Elementwise, nn.Softsign):
    """`torch.nn.Softsign` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "softsign"


class Tanhshrink(_Elementwise, nn.Tanhshrink):
    """`torch.nn.Tanhshrink` that keeps its rounded derivative (`rad.functional.elementwise`)."""

    function = "tanhshrink"


class LeakyReLU(_Elementwise, nn.LeakyReLU):
    """`torch.nn.LeakyReLU` that keeps which of two values its derivative has, exactly."""

    function, options, is_two_valued = "leaky_relu", ("negative_slope",), True


class Hardsigmoid(_Elementwise, nn.Hardsigmoid):
    """`torch.nn.Hardsigmoid` that keeps which of two values its derivative has, exactly."""

    function, is_two_valued = "hardsigmoid", True


class Hardtanh(_Elementwise, nn.Hardtanh):
    """`torch.nn.Hardtanh` that keeps which of two values its derivative has, exactly."""

    function, options, is_two_valued = "hardtanh", ("min_val", "max_val"), True


class ReLU6(_Elementwise, nn.ReLU6):
    """`torch.nn.ReLU6` that keeps which of two values its derivative has, exactly."""

    function, is_two_valued = "relu6", True


class Softshrink(_Elementwise, nn.Softshrink):
    """`torch.nn.Softshrink` that keeps which of two values its derivative has, exactly."""

    function, options, is_two_valued = "softshrink", ("lambd",), True


class Hardshrink(_Elementwise, nn.Hardshrink):
    """`torch.nn.Hardshrink` that keeps which of two values its derivative has, exactly."""

    function, options, is_two_valued = "hardshrink", ("lambd",), True
