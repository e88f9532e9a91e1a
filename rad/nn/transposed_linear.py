"""A linear layer whose weight lies the other way round, as in GPT-2 of the transformers library."""

from __future__ import annotations

from torch import Tensor

from rad import functional
from rad.functional.linear_noise import LinearResponse
from rad.functional.noise_response import NoiseResponse
from rad.nn.base import Exact, Sketching
from rad.nn.plain import PlainTransposedLinear
from rad.nn.serving import as_torch
from rad.sketches import Identity, Sketch


class TransposedLinear(Sketching, PlainTransposedLinear):
    """`PlainTransposedLinear` that keeps a sketch of its input (`rad.functional.linear`)."""

    def __init__(
        self, in_features: int, out_features: int, *, sketch: Sketch | None = None, seed: int = 0
    ) -> None:
        super().__init__(in_features, out_features)
        self.set_sketch(sketch or Identity(), seed)

    def forward(self, input: Tensor) -> Tensor:
        if not self.sketches_now():
            exact: Tensor = as_torch(super().forward, input)
            return exact
        key, kept = self.key_and_kept(input, self.weight, functional.keep_for_linear)
        return functional.linear(
            input, self.weight.t(), self.bias, sketch=self.sketch, key=key, kept=kept
        )

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        rows = (x.shape[:-1].numel(), x.shape[-1])
        return self.kept_of_input(x, rows, output, exact)

    def noise_response(self, x: Tensor, grad_output: Tensor) -> NoiseResponse:
        return LinearResponse(x, grad_output)

    def extra_repr(self) -> str:
        shape = "in_features={}, out_features={}".format(*self.weight.shape)
        return f"{shape}{super().extra_repr()}"
